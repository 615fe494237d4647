"""What a running service holds and hands to its routes: the models, the decoders, the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from service.body import BodyBudget, BodyLimits
from service.decode_pool import DecodePool
from service.errors import NotReady, UnknownModel
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.repository import Repository
from service.served_model import ServedModel
from service.settings import Settings


@dataclass(frozen=True)
class Serving:
    """Built by the lifespan, once everything in it works."""

    settings: Settings
    repository: Repository
    decoders: DecodePool
    metrics: Metrics
    lifecycle: Lifecycle
    bodies: BodyBudget
    now: Callable[[], float] = time.monotonic  # the clock of deadlines and durations

    @property
    def default_name(self) -> str:
        """Of the model that answers when a request names none."""
        return self.repository.default_name

    @property
    def models(self) -> dict[str, ServedModel]:
        """The served models by name."""
        return self.repository.models

    def watch(self) -> None:
        """Report what waits, of all models together."""
        self.metrics.watch(
            pending=lambda: sum(batcher.pending for batcher in self.repository.batchers),
            pending_work_s=lambda: sum(batcher.work.pending_work_s for batcher in self.repository.batchers),
            degradation=lambda: max((model.planner.level for model in self.models.values()), default=0.0),
            decoding=lambda: self.decoders.pending,
            body_bytes=lambda: self.bodies.held_bytes,
        )

    async def close(self, timeout_s: float) -> bool:
        """Finish what was accepted and stop; False if some had to be failed after `timeout_s`."""
        finished = await self.repository.close(timeout_s)
        self.decoders.close()
        return finished

    def abandon(self) -> None:
        """Fail what every model still holds."""
        for batcher in self.repository.batchers:
            batcher.abandon()

    @property
    def stalled_s(self) -> float:
        """Seconds without progress of the model that has made none for longest although images wait."""
        return max((batcher.stalled_s for batcher in self.repository.batchers), default=0.0)

    @property
    def body_limits(self) -> BodyLimits:
        """What one body may hold."""
        return BodyLimits(
            max_image_bytes=self.settings.max_image_bytes,
            max_request_bytes=self.settings.max_request_bytes,
            max_images=min(self.settings.max_images_per_request, self.settings.max_pending_images),
            budget=self.bodies,
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


async def get_serving(request: Request) -> Serving:
    """The running service; NotReady before the lifespan has built it. Async, or it would be run on a thread."""
    serving = getattr(request.state, "serving", None)
    if not isinstance(serving, Serving):
        raise NotReady("the service is starting")
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]
