"""The layers around the routes, outermost first: request context, CORS, gate, HEAD; and who is told of an end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import load_api_keys
from service.gate import API_KEY, Gate
from service.lifecycle import Lifecycle
from service.logs import log_request
from service.metrics import Metrics
from service.request_context import REQUEST_ID, Ended, RequestContext
from service.settings import Settings
from service.tracing import Tracer

_JSON_LENGTH = "Inference-Header-Content-Length"
_TAKEN = (
    *(API_KEY, "Authorization", "Cache-Control", "Content-Type", REQUEST_ID, "X-Request-Timeout-Ms", _JSON_LENGTH),
    "traceparent",
)
_SHOWN = (REQUEST_ID, "Retry-After", "Server-Timing", _JSON_LENGTH)


def add_layers(app: FastAPI, settings: Settings, metrics: Metrics, lifecycle: Lifecycle, tracer: Tracer | None) -> None:
    """Put the layers around the application's routes; SettingsError if the API keys can't be read."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(Gate, max_header_bytes=settings.max_header_bytes, api_keys=load_api_keys(settings))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=_TAKEN,
            expose_headers=_SHOWN,
        )
    app.add_middleware(
        RequestContext,
        on_end=_Sinks(metrics, tracer, settings.log_sample_ratio),
        is_leaving=lambda: lifecycle.phase == "draining",
    )


class HeadAsGet:
    """ASGI middleware: whatever can be got has its head, too (RFC 9110, 9.1). The server below leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        got = dict(scope, method="GET")
        await self._app(got, receive, send)
        scope["route"] = got.get("route")


class _Sinks:
    """Called with each request that has ended; hands it to whoever records it."""

    def __init__(
        self,
        metrics: Metrics,
        tracer: Tracer | None,
        log_sample_ratio: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._log_sample_ratio = log_sample_ratio
        self._draw = draw  # in [0, 1)

    def __call__(self, state: dict[str, Any], ended: Ended) -> None:
        if "model" in state:  # a route marked it as countable
            self._metrics.on_request(state["model"], state["outcome"], ended.duration_s)
        if "api_key" in state:
            self._metrics.on_api_key(state["api_key"])
        if self._tracer is not None:
            self._tracer.record(state, ended)
        if ended.failed or self._draw() < self._log_sample_ratio:
            log_request(ended, state)
