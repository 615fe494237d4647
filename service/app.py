"""The application: wiring only. `create_app` builds it from settings, its lifespan loads, warms up and drains.

uvicorn --factory service.app:create_app        (`python -m service` adds draining on SIGTERM and clearer errors)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

from service.artifact import Bundle, load_bundle
from service.batcher import Batcher
from service.cpu import usable_cpus
from service.decode_pool import DecodePool
from service.engine import Engine, OnnxEngine, warm_up
from service.error_handlers import add_error_handlers
from service.errors import BundleError, InferenceFailed
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

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        served = await asyncio.to_thread(load_model_bundle, settings) if bundle is None else bundle
        running = await asyncio.to_thread(load_engine, settings, served) if engine is None else engine
        serving = _assemble(settings, served, running, metrics, lifecycle)
        serving.batcher.start()
        lifecycle.abandon = serving.batcher.abandon
        lifecycle.become_ready()
        try:
            yield {"serving": serving}
        finally:
            lifecycle.begin_drain()
            left_s = max(1.0, settings.drain_timeout_s - lifecycle.draining_s())
            lifecycle.finished_in_time = await serving.batcher.drain(left_s)
            serving.decoders.close()

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


def load_model_bundle(settings: Settings) -> Bundle:
    """The bundle that the settings name, verified and fit for them; BundleError if it isn't."""
    bundle = load_bundle(settings.bundle_path)
    if settings.default_preset not in bundle.manifest.presets:
        presets = ", ".join(bundle.manifest.presets) or "none"
        raise BundleError(
            f"{bundle.path}: no preset {settings.default_preset!r} (SKIPVIT_DEFAULT_PRESET), only {presets}"
        )
    return bundle


def load_engine(settings: Settings, bundle: Bundle) -> OnnxEngine:
    """The bundle's graphs, warm, on as many threads as the settings or the CPUs allow; BundleError if one fails."""
    engine = OnnxEngine(bundle, threads=settings.threads or usable_cpus())
    try:
        warm_up(engine, bundle.manifest.sizes_px, max_batch_size=settings.max_batch_size)
    except InferenceFailed as error:
        raise BundleError(f"{bundle.path}: the first run failed: {error}") from error
    return engine


def _assemble(settings: Settings, bundle: Bundle, engine: Engine, metrics: Metrics, lifecycle: Lifecycle) -> Serving:
    manifest = bundle.manifest
    batcher = Batcher(
        engine,
        max_batch_size=settings.max_batch_size,
        max_pending=settings.max_pending_images,
        on_batch=partial(metrics.on_batch, manifest.name),
    )
    decoders = DecodePool(
        threads=settings.decode_threads or min(_MAX_DECODE_THREADS, usable_cpus()),
        max_pending=settings.max_pending_images,
        limits=ImageLimits(settings.max_image_bytes, settings.max_image_pixels),
        interpolation=manifest.preprocessing.interpolation,
    )
    metrics.serve(manifest, lambda: batcher.pending, lambda: batcher.pending_work_s)
    return Serving(settings, bundle, batcher, decoders, metrics, lifecycle)


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
