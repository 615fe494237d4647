"""The application: wiring only. `create_app` builds it from settings, its lifespan loads, warms up and drains.

uvicorn --factory service.app:create_app        (`python -m service` adds draining on SIGTERM and clearer errors)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

from service.artifact import Bundle
from service.cpu import usable_cpus
from service.decode_pool import DecodePool
from service.engine import Engine
from service.error_handlers import add_error_handlers
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.preprocess import ImageLimits
from service.request_context import RequestContext
from service.routes import classify, models, ops, v2
from service.schemas import Problem
from service.serving import Serving, State
from service.settings import Settings

_MAX_DECODE_THREADS = 4  # by default; more would take CPUs from the engine


def create_app(
    settings: Settings | None = None, *, bundle: Bundle | None = None, engine: Engine | None = None
) -> FastAPI:
    """Build the application; nothing is loaded before its lifespan starts.

    Args:
        settings: None reads the environment.
        bundle: a verified bundle; None loads the one that the settings name.
        engine: what classifies, warm; None loads the bundle's graphs and warms them up.
    """
    settings = Settings() if settings is None else settings
    metrics = Metrics()
    lifecycle = Lifecycle()
    default_name = settings.default_model if bundle is None else bundle.manifest.name

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        serving = Serving(settings, default_name, _decode_pool(settings), metrics, lifecycle)
        await serving.open(default_name, bundle, engine)
        serving.watch()
        lifecycle.abandon = serving.abandon
        lifecycle.become_ready()
        try:
            yield {"serving": serving}
        finally:
            lifecycle.begin_drain()
            left_s = max(1.0, settings.drain_timeout_s - lifecycle.draining_s())
            lifecycle.finished_in_time = await serving.close(left_s)

    app = FastAPI(
        title="skipvit",
        summary="Vision Transformers that compute only the patches an image needs.",
        lifespan=lifespan,
    )
    app.state.lifecycle = lifecycle
    app.add_middleware(RequestContext, on_end=partial(_count, metrics))
    add_error_handlers(app)
    for router in (classify.router, models.router, v2.router, ops.router):
        app.include_router(router)
    _describe_problems(app)
    return app


def _decode_pool(settings: Settings) -> DecodePool:
    return DecodePool(
        threads=settings.decode_threads or min(_MAX_DECODE_THREADS, usable_cpus()),
        max_pending=settings.max_pending_images,
        limits=ImageLimits(settings.max_image_bytes, settings.max_image_pixels),
    )


def _count(metrics: Metrics, state: dict[str, Any], duration_s: float) -> None:
    """Count what a route marked as countable."""
    if "model" in state:
        metrics.on_request(state["model"], state["outcome"], duration_s)


def _describe_problems(app: FastAPI) -> None:
    """Put the problem schema, which responses refer to by name, into the OpenAPI document."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema(ref_template="#/components/schemas/{model}"))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
