"""A second, tiny listener in the same process and event loop: `/metrics`, `/healthz` and `/readyz` for operators."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.connection import Connection
from service.error_handlers import add_error_handlers
from service.layers import HeadAsGet
from service.ports import bind
from service.routes import ops
from service.serving import Serving

logger = logging.getLogger("skipvit")


class _Listener(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the process's first server, whose lifespan holds this one."""
        yield


@asynccontextmanager
async def operations_listener(serving: Serving) -> AsyncIterator[int | None]:
    """Listen on the settings' metrics port while the block runs; yields the port, None if there is none.

    Raises:
        SettingsError: the port is taken.
    """
    settings = serving.settings
    if settings.metrics_port is None:
        yield None
        return
    bound = bind(settings.host, settings.metrics_port, "METRICS_PORT")
    port = int(bound.getsockname()[1])
    config = uvicorn.Config(
        make_operations_app(serving),
        http=Connection.limited(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    listener = _Listener(config)
    running = asyncio.create_task(listener.serve([bound]), name="operations listener")
    logger.info("metrics and probes on http://%s:%d", settings.host, port)
    try:
        yield port
    finally:
        listener.should_exit = True
        await running


def make_operations_app(serving: Serving) -> ASGIApp:
    """The listener's application; it serves what the main one holds."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(HeadAsGet)
    add_error_handlers(app)
    app.include_router(ops.router)
    app.include_router(ops.metrics_router)

    async def with_serving(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["serving"] = serving
        await app(scope, receive, send)

    return with_serving
