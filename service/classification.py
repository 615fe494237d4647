"""One request's way from a body with images to their answers: planned, read, decoded, asked, sampled, cached.

Shared by every route that takes encoded images. It knows no format of an answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from service.account import make_account
from service.batch import Answer
from service.body import read_images
from service.budget import Choice, choose, dominates
from service.cache import Computed
from service.errors import DeadlinePassed
from service.exchange import Measured, ask, record
from service.planner import Plan
from service.results import Receipt, make_receipt
from service.schemas import SpendQuery
from service.served_model import ServedModel
from service.serving import Serving

_NO_CACHE = re.compile(r"\bno-(cache|store)\b", re.IGNORECASE)  # the caller wants it computed now (RFC 9111)


class Answered(NamedTuple):
    """What a request's images gave."""

    plans: Sequence[Plan]  # what each ran with; a cached answer may have had more than was asked
    computed: Sequence[Computed]
    receipts: Sequence[Receipt]
    images: Sequence[NDArray[np.uint8]]  # as they were decoded, (S, S, 3); none if a cache was asked
    measured: Measured


async def classify_images(
    request: Request,
    serving: Serving,
    model: ServedModel,
    query: SpendQuery,
    timeout_ms: int | None,
    *,
    max_images: int | None = None,
    draws: bool = False,
) -> Answered:
    """Answer the images in a request's body.

    Args:
        query: what to spend on them.
        timeout_ms: from the request's start; None takes the default.
        max_images: how many the body may hold; None takes the limit of the settings.
        draws: whether the decoded images themselves are needed.

    Raises:
        ClientDisconnect: the client left; its images were withdrawn.
        ServiceError: what was wrong with the request, or why it can't be answered now.
    """
    timeout_s = serving.settings.default_timeout_s if timeout_ms is None else timeout_ms / 1e3
    deadline = request.state.started_s + timeout_s
    model.batcher.check_room(1)  # a full queue refuses before it reads and decodes
    wanted, plan = _plan(serving, model, query, deadline)
    run = _Run(request, serving, model, plan, deadline)
    limits = serving.body_limits if max_images is None else serving.body_limits._replace(max_images=max_images)
    try:
        async with asyncio.timeout_at(deadline):  # the loop's clock is `time.monotonic`, as the deadline's is
            encoded = await read_images(request, limits)
            if model.cache is None or draws or _NO_CACHE.search(request.headers.get("cache-control", "")):
                computed = [Computed(plan.choice, answer) for answer in await run.compute(encoded)]
            else:
                computed = await model.cache.answers(encoded, plan.choice, run.compute)
    except TimeoutError:
        raise DeadlinePassed("the deadline passed before the images were received, decoded and answered") from None
    if query.may_be_lowered_by_load:
        _offer_samples(model, encoded, computed)
    return Answered(
        plans=[
            Plan(one.choice, plan.degraded and not dominates(model.manifest, one.choice, wanted)) for one in computed
        ],
        computed=computed,
        receipts=[make_receipt(model.manifest, one.choice, one.answer.kept) for one in computed],
        images=run.images,
        measured=Measured(run.decode_s, [one.answer for one in computed], serving.now() - request.state.started_s),
    )


def record_answered(request: Request, serving: Serving, model: ServedModel, answered: Answered) -> None:
    """Hand what a request cost to the metrics, and leave its account for log and trace."""
    thresholds = [plan.choice.threshold for plan in answered.plans]
    degraded = any(plan.degraded for plan in answered.plans)
    fresh = [receipt for receipt, one in zip(answered.receipts, answered.computed, strict=True) if not one.cached]
    record(serving, model, fresh, thresholds, answered.measured, degraded=degraded)
    request.state.account = make_account(
        answered.receipts,
        thresholds,
        answered.measured,
        size_px=answered.plans[0].choice.size_px,
        degraded=degraded,
        cached=len(answered.plans) - len(fresh),
    )
    request.state.outcome = "ok"


def _plan(serving: Serving, model: ServedModel, query: SpendQuery, deadline: float) -> tuple[Choice, Plan]:
    """What a request asks for, and what it gets."""
    default_preset = serving.settings.default_preset
    wanted = choose(
        model.manifest,
        threshold=query.threshold,
        compute=query.compute,
        preset=query.preset,
        size_px=query.size,
        default_preset=default_preset,
    )
    plan = model.planner.plan(
        wanted,
        bound=query.preset or default_preset,
        by_load=query.may_be_lowered_by_load,
        by_deadline=query.degrade is True,
        deadline=deadline,
        size_px=query.size,
    )
    return wanted, plan


class _Run:
    """Decodes images and asks the queue, once for a request; remembers the images and how long decoding took."""

    def __init__(self, request: Request, serving: Serving, model: ServedModel, plan: Plan, deadline: float) -> None:
        self._request = request
        self._serving = serving
        self._model = model
        self._plan = plan
        self._deadline = deadline
        self.images: list[NDArray[np.uint8]] = []
        self.decode_s = 0.0

    async def compute(self, encoded: Sequence[bytes]) -> list[Answer]:
        """The answers to images that nobody has computed yet."""
        size_px, threshold = self._plan.choice
        started_s = self._serving.now()
        interpolation = self._model.manifest.preprocessing.interpolation
        self.images = await self._serving.decoders.decode(encoded, size_px, interpolation)
        self.decode_s += self._serving.now() - started_s
        thresholds = [threshold] * len(self.images)
        return await ask(self._request, self._model, self.images, thresholds, self._deadline)


def _offer_samples(model: ServedModel, encoded: Sequence[bytes], computed: Sequence[Computed]) -> None:
    """Let the quality guard choose among the answers that had less than full compute."""
    full = (model.manifest.full.size_px, 0.0)
    for image, one in zip(encoded, computed, strict=True):
        if one.choice != full and not one.cached:
            model.guard.offer(image, int(one.answer.logits.argmax()))
