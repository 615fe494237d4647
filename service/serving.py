"""What a running service holds and hands to its routes: the model, its queue, the decoders, the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from service.artifact import Bundle, Manifest
from service.batcher import Batcher
from service.body import BodyLimits
from service.decode_pool import DecodePool
from service.errors import NotReady, UnknownModel
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import Settings


@dataclass(frozen=True)
class Serving:
    """Built by the lifespan, once everything in it works."""

    settings: Settings
    bundle: Bundle
    batcher: Batcher
    decoders: DecodePool
    metrics: Metrics
    lifecycle: Lifecycle

    @property
    def manifest(self) -> Manifest:
        """The served model's manifest."""
        return self.bundle.manifest

    @property
    def body_limits(self) -> BodyLimits:
        """What one body may hold."""
        return BodyLimits(
            max_image_bytes=self.settings.max_image_bytes,
            max_request_bytes=self.settings.max_request_bytes,
            max_images=min(self.settings.max_images_per_request, self.settings.max_pending_images),
        )

    def require_model(self, name: str | None) -> Manifest:
        """The manifest of the model `name`, or of the default one; UnknownModel if it isn't served."""
        if name not in (None, self.manifest.name):
            raise UnknownModel(f"no model {name[:100]!r} is served here; there is {self.manifest.name!r}")
        return self.manifest


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
