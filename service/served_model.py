"""One model as it is served: its bundle, its queue and what steers it. It knows no route and no other model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

from service.artifact import Bundle, Manifest, Precision, load_bundle
from service.batcher import Batcher
from service.budget import timed
from service.cache import AnswerCache
from service.controller import Controller
from service.cost import CostModel
from service.decode_pool import DecodePool
from service.engine import Engine, warm_up
from service.errors import BundleError, InferenceFailed
from service.guard import Guard
from service.metrics import Metrics
from service.planner import Planner
from service.runtime import make_engine
from service.settings import Settings
from service.users import Users


@dataclass(frozen=True, eq=False)
class ServedModel:
    """Built once its engine is warm; its batcher runs from `start` to `drain`."""

    bundle: Bundle
    manifest: Manifest  # the bundle's, with times as they are in the engine's precision
    precision: Precision  # of the engine
    batcher: Batcher
    cost: CostModel
    planner: Planner
    guard: Guard
    cache: AnswerCache | None  # None: switched off
    users: Users = field(default_factory=Users)  # requests that have chosen it; it isn't let go before they end

    async def close(self, timeout_s: float) -> bool:
        """Finish what was accepted and stop; False if some had to be failed after `timeout_s`."""
        self.guard.stop()
        return await self.batcher.drain(timeout_s)

    @property
    def name(self) -> str:
        """The model's name, which is its folder's."""
        return self.manifest.name


def open_model(settings: Settings, name: str) -> tuple[Bundle, Engine]:
    """Verify the bundle `name` of the model repository and warm its engine up; BundleError if either fails.

    Takes seconds and much memory: call it on a thread.
    """
    bundle = load_model_bundle(settings, name)
    return bundle, load_engine(settings, bundle)


def load_model_bundle(settings: Settings, name: str) -> Bundle:
    """The bundle `name`, verified and fit for the settings; BundleError if it isn't."""
    bundle = load_bundle(settings.model_repository / name)
    if settings.default_preset not in bundle.manifest.presets:
        presets = ", ".join(bundle.manifest.presets) or "none"
        raise BundleError(
            f"{bundle.path}: no preset {settings.default_preset!r} (SKIPVIT_DEFAULT_PRESET), only {presets}"
        )
    return bundle


def load_engine(settings: Settings, bundle: Bundle) -> Engine:
    """The engine that the settings choose, warm.

    Raises:
        SettingsError: its runtime isn't installed, or can't do what another setting asks for.
        BundleError: it can't load the bundle, or its first run fails.
    """
    engine = make_engine(settings, bundle)
    try:
        warm_up(engine, bundle.manifest.sizes_px, max_batch_size=settings.max_batch_size)
    except InferenceFailed as error:
        raise BundleError(f"{bundle.path}: the first run failed: {error}") from error
    return engine


def serve_model(
    settings: Settings, bundle: Bundle, engine: Engine, metrics: Metrics, decoders: DecodePool
) -> ServedModel:
    """Put a queue in front of a warm engine and report on it; needs a running event loop."""
    manifest = timed(bundle.manifest, engine.precision)
    cost = CostModel(manifest)
    batcher = Batcher(
        engine,
        cost,
        max_batch_size=settings.max_batch_size,
        max_pending=settings.max_pending_images,
        max_batch_work_s=settings.max_batch_work_s,
        max_pending_work_s=settings.max_pending_work_s,
        on_batch=partial(metrics.on_batch, manifest.name),
        on_busy=partial(metrics.on_busy, manifest.name),
        on_terminate=partial(metrics.on_terminate, manifest.name),
    )
    controller = Controller(target_s=settings.adaptive_target_s, enabled=settings.adaptive)
    planner = Planner(
        manifest,
        batcher.work,
        controller,
        min_compute=settings.min_compute,
        looks_ratio=lambda: cost.looks_ratio,
    )
    guard = Guard(
        batcher,
        partial(decoders.decode_one, size_px=manifest.full.size_px, interpolation=manifest.preprocessing.interpolation),
        ratio=settings.guard_ratio,
        min_agreement=settings.min_agreement,
        random=random.random,
        on_sample=partial(metrics.on_sample, manifest.name),
        on_verdict=controller.judge,
    )
    on_find, on_store = partial(metrics.on_find, manifest.name), partial(metrics.on_store, manifest.name)
    size_bytes = settings.cache_bytes
    cache = AnswerCache(manifest, size_bytes, on_find=on_find, on_store=on_store) if size_bytes else None
    metrics.serve(manifest, engine.precision)
    batcher.start()
    guard.start()
    return ServedModel(bundle, manifest, engine.precision, batcher, cost, planner, guard, cache)
