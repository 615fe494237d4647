"""One request's exchange with the batcher: counted, waited for, withdrawn when the client leaves, recorded.

Shared by every route that classifies. It knows futures only to gather and to cancel them, and no body and no format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from service.batch import Answer
from service.errors import UnknownModel
from service.results import Receipt
from service.schemas import TimingMs
from service.served_model import ServedModel
from service.serving import Serving, ServingDep

CLIENT_LEFT = 499  # nobody reads it; nginx's number in the log
UNKNOWN_MODEL = "unknown"  # the label of requests for a model that isn't served


async def count_request(request: Request, serving: ServingDep) -> None:
    """Mark the request as one that `skipvit_requests_total` counts; runs before parameters are looked at."""
    request.state.model = serving.default_name
    request.state.outcome = "error"


def find_model(request: Request, serving: Serving, name: str | None, version: str | None = None) -> ServedModel:
    """The model that a request asks for, of the version if it names one.

    Raises:
        UnknownModel: it isn't served; if the request is counted, then under the label for all such models.
    """
    try:
        model = serving.model(name)
        if version not in (None, model.manifest.version):
            raise UnknownModel(
                f"{model.name!r} has no version {version[:100]!r} here; there is {model.manifest.version!r}"
            )
    except UnknownModel:
        if hasattr(request.state, "model"):
            request.state.model = UNKNOWN_MODEL
        raise
    if hasattr(request.state, "model"):
        request.state.model = model.name
    request.state.held.enter_context(model.users)
    return model


class Measured(NamedTuple):
    """A request's phases; of several images the slowest counts."""

    decode_s: float
    answers: Sequence[Answer]
    total_s: float

    @property
    def queue_s(self) -> float:
        return max(answer.queue_s for answer in self.answers)

    @property
    def inference_s(self) -> float:
        return max(answer.inference_s for answer in self.answers)

    def timing_ms(self) -> TimingMs:
        """The phases as they go over the wire."""
        return {
            "decode": self.decode_s * 1e3,
            "queue": self.queue_s * 1e3,
            "inference": self.inference_s * 1e3,
            "total": self.total_s * 1e3,
        }


def server_timing(timing: TimingMs) -> str:
    """The value of a `Server-Timing` header."""
    return ", ".join(f"{phase};dur={duration:.3f}" for phase, duration in timing.items())


async def ask(
    request: Request,
    model: ServedModel,
    images: Sequence[NDArray[np.uint8]],
    thresholds: Sequence[float],
    deadline: float,
    *,
    later_macs: float = 0.0,
    since_s: float | None = None,
) -> list[Answer]:
    """Wait for all answers, or withdraw the images when the client leaves (ClientDisconnect) or one fails.

    Args:
        images: each (S, S, 3); they must not change until answered.
        thresholds: one for each image.
        deadline: the batcher's clock's time after which nobody wants the answers.
        later_macs, since_s: of first and of second looks, for the batcher.
    """
    futures = model.batcher.submit_many(images, thresholds, deadline, later_macs=later_macs, since_s=since_s)
    leaving = asyncio.create_task(_withdraw_when_left(request, futures))
    if since_s is None:
        request.state.admitted_s = asyncio.get_running_loop().time()
    try:
        return await asyncio.gather(*futures) if len(futures) > 1 else [await futures[0]]  # the latter is sooner
    except asyncio.CancelledError:
        if leaving.done():
            raise ClientDisconnect from None
        raise
    finally:
        leaving.cancel()
        for future in futures:
            future.cancel()


def record(
    serving: Serving,
    model: ServedModel,
    receipts: Sequence[Receipt],
    thresholds: Sequence[float],
    measured: Measured,
    *,
    degraded: bool = False,
    second_looks: int = 0,
) -> None:
    """Hand what a request cost to the metrics.

    Args:
        receipts: of the images that were computed; none if a cache had them all.
        thresholds: of all images; their mean is the request's.
        degraded: whether an image got less compute than asked.
        second_looks: images that were looked at twice.
    """
    serving.metrics.on_answer(
        model.name,
        receipts,
        threshold=sum(thresholds) / len(thresholds),
        decode_s=measured.decode_s,
        queue_s=measured.queue_s,
        degraded=degraded,
        second_looks=second_looks,
    )


async def _withdraw_when_left(request: Request, futures: Sequence[asyncio.Future[Answer]]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for future in futures:
        future.cancel()
