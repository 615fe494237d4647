"""What a running service holds and hands to its routes: the models, the decoders, the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from service.artifact import Bundle
from service.body import BodyLimits
from service.decode_pool import DecodePool
from service.engine import Engine
from service.errors import NotReady, UnknownModel
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.served_model import ServedModel, load_engine, load_model_bundle, serve_model
from service.settings import Settings


@dataclass(frozen=True)
class Serving:
    """Built by the lifespan, once everything in it works."""

    settings: Settings
    default_name: str  # of the model that answers when a request names none
    decoders: DecodePool
    metrics: Metrics
    lifecycle: Lifecycle
    models: dict[str, ServedModel] = field(default_factory=dict)  # by name; what isn't in it isn't served
    now: Callable[[], float] = time.monotonic  # the clock of deadlines and durations

    def watch(self) -> None:
        """Report what all models together have pending."""
        self.metrics.watch(
            lambda: sum(model.batcher.pending for model in self.models.values()),
            lambda: sum(model.batcher.pending_work_s for model in self.models.values()),
            lambda: max((model.planner.level for model in self.models.values()), default=0.0),
        )

    async def open(self, name: str, bundle: Bundle | None = None, engine: Engine | None = None) -> None:
        """Load the model `name` off the loop, unless its bundle and a warm engine are given, and serve it.

        Raises:
            BundleError: the bundle is missing or broken, or its engine doesn't run.
        """
        if bundle is None:
            bundle = await asyncio.to_thread(load_model_bundle, self.settings, name)
        if engine is None:
            engine = await asyncio.to_thread(load_engine, self.settings, bundle)
        model = serve_model(self.settings, bundle, engine, self.metrics, self.decoders)
        self.models[model.name] = model

    async def close(self, timeout_s: float) -> bool:
        """Finish what was accepted and stop; False if some had to be failed after `timeout_s`."""
        finished = await asyncio.gather(*(model.close(timeout_s) for model in self.models.values()))
        self.decoders.close()
        return all(finished)

    def abandon(self) -> None:
        """Fail what every model still holds."""
        for model in self.models.values():
            model.batcher.abandon()

    @property
    def stalled_s(self) -> float:
        """Seconds without progress of the model that has made none for longest although images wait."""
        return max((model.batcher.stalled_s for model in self.models.values()), default=0.0)

    @property
    def body_limits(self) -> BodyLimits:
        """What one body may hold."""
        return BodyLimits(
            max_image_bytes=self.settings.max_image_bytes,
            max_request_bytes=self.settings.max_request_bytes,
            max_images=min(self.settings.max_images_per_request, self.settings.max_pending_images),
        )

    def model(self, name: str | None = None) -> ServedModel:
        """The model `name`, or the default one; UnknownModel if it isn't served."""
        wanted = self.default_name if name is None else name
        found = self.models.get(wanted)
        if found is None:
            there = ", ".join(repr(known) for known in self.models) or "none"
            raise UnknownModel(f"no model {wanted[:100]!r} is served here; there is {there}")
        return found


class State(TypedDict):
    """What the lifespan yields; each request sees it as `request.state`."""

    serving: Serving


def get_serving(request: Request) -> Serving:
    """The running service; NotReady before the lifespan has built it."""
    serving = getattr(request.state, "serving", None)
    if not isinstance(serving, Serving):
        raise NotReady("the service is starting")
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]
