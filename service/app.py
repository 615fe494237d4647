"""The application: wiring only. `create_app` builds it from settings, its lifespan loads, warms up and drains.

uvicorn --factory service.app:create_app        (`python -m service` adds draining, limits to clients, clear errors)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.artifact import Bundle
from service.body import BodyBudget
from service.cpu import usable_cpus
from service.decode_pool import DecodePool
from service.engine import Engine
from service.error_handlers import add_error_handlers
from service.layers import add_layers
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.openapi import describe
from service.ops_listener import operations_listener
from service.preprocess import ImageLimits
from service.repository import Repository
from service.routes import classify, explain, models, ops, repository, triton, v2
from service.routes.page import add_page
from service.rpc import check_extra, rpc_listener
from service.served_model import load_engine
from service.serving import Serving, State
from service.settings import Settings
from service.tracing import load_tracer

_MAX_DECODE_THREADS = 4  # by default; more would take CPUs from the engine


def create_app(
    settings: Settings | None = None,
    *,
    bundle: Bundle | None = None,
    engine: Engine | None = None,
    load: Callable[[Settings, Bundle], Engine] = load_engine,
) -> FastAPI:
    """Build the application; nothing is loaded before its lifespan starts.

    Args:
        settings: None reads the environment.
        bundle: a verified bundle; None loads the one that the settings name.
        engine: what classifies, warm; None loads the bundle's graphs and warms them up.
        load: makes the engine of every further bundle, warm.
    """
    settings = Settings() if settings is None else settings
    check_extra(settings)
    metrics = Metrics()
    lifecycle = Lifecycle()
    tracer = load_tracer(settings)
    default_name = settings.default_model if bundle is None else bundle.manifest.name

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        served = Repository(settings, default_name, metrics, decoders := _decode_pool(settings, metrics), load)
        serving = Serving(settings, served, decoders, metrics, lifecycle, BodyBudget(settings.max_request_bytes))
        await served.open(bundle, engine)
        serving.watch()
        lifecycle.abandon = serving.abandon
        try:
            async with (
                operations_listener(serving) as app.state.metrics_port,
                rpc_listener(app, serving) as app.state.grpc_port,
            ):
                served.open_others(then=lifecycle.become_ready)
                yield {"serving": serving}
        finally:
            lifecycle.begin_drain()
            left_s = max(1.0, settings.drain_timeout_s - lifecycle.draining_s())
            lifecycle.finished_in_time = await serving.close(left_s)
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

    app = FastAPIOffline(  # FastAPI whose /docs loads its viewer from here, not from a content network
        redoc_url=None,
        redirect_slashes=False,  # to an address of http, behind a proxy that speaks https
        title="skipvit",
        summary="Vision Transformers that compute only the patches an image needs.",
        lifespan=lifespan,
    )
    app.state.lifecycle = lifecycle
    add_layers(app, settings, metrics, lifecycle, tracer)
    add_error_handlers(app)
    for routes in (classify, explain, models, triton, v2, repository, ops):
        app.include_router(routes.router)
    if settings.metrics_port is None:
        app.include_router(ops.metrics_router)
    add_page(app)
    describe(app, locked=settings.asks_for_keys)
    return app


def _decode_pool(settings: Settings, metrics: Metrics) -> DecodePool:
    return DecodePool(
        threads=settings.decode_threads or min(_MAX_DECODE_THREADS, usable_cpus()),
        max_pending=settings.max_pending_images,
        limits=ImageLimits(settings.max_image_bytes, settings.max_image_pixels),
        on_decode=metrics.on_decode,
    )
