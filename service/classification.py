"""One request's way from a body with images to their answers: planned, read, decoded, asked, sampled, cached.

Shared by every route that takes encoded images. It knows no format of an answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from service.account import make_account
from service.artifact import Manifest
from service.batch import Answer
from service.body import read_images
from service.budget import Choice, choose, look_again_at, second_of
from service.cache import Computed
from service.errors import DeadlinePassed, NotReady, Overloaded
from service.exchange import Measured, ask, record
from service.planner import Plan
from service.results import Receipt, make_receipt
from service.schemas import SpendQuery
from service.second_look import Looked, add_macs, falls_short, merge, unsure
from service.served_model import ServedModel
from service.serving import Serving

_NO_CACHE = re.compile(r"\bno-(cache|store)\b", re.IGNORECASE)  # the caller wants it computed now (RFC 9111)


_REPLY_S = 0.01  # left of a deadline for the answer itself, when a second look is given up


class Answered(NamedTuple):
    """What a request's images gave."""

    plans: Sequence[Plan]  # what each ran with; a cached answer may have had more than was asked
    computed: Sequence[Computed]
    before: Sequence[Computed | None]  # each image's first look, where there was a second
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
    limits = serving.body_limits if max_images is None else serving.body_limits._replace(max_images=max_images)
    read = partial(read_images, request, limits)
    return await answer_images(request, serving, model, query, request.state.started_s + timeout_s, read, draws=draws)


async def answer_images(
    request: Request,
    serving: Serving,
    model: ServedModel,
    query: SpendQuery,
    deadline: float,
    read: Callable[[], Awaitable[Sequence[bytes]]],
    *,
    draws: bool = False,
) -> Answered:
    """Answer the encoded images that `read` gives, however they came; raises what `classify_images` raises."""
    model.batcher.check_room(1)  # a full queue refuses before it reads and decodes
    wanted, plan = _plan(serving, model, query, deadline)
    no_cache = draws or _NO_CACHE.search(request.headers.get("cache-control", "")) is not None
    run = _Run(request, serving, model, deadline, no_cache=no_cache)
    try:
        async with asyncio.timeout_at(deadline):  # the loop's clock is `time.monotonic`, as the deadline's is
            encoded = await read()
            first = await run.look(encoded, Choice(*plan.choice[:2]), later_macs=model.cost.later_macs(*plan.choice))
            looked = await run.look_again(encoded, first, plan.choice, may_give_up=query.degrade is not False)
    except TimeoutError:
        raise DeadlinePassed("the deadline passed before the images were received, decoded and answered") from None
    computed = [one.computed for one in looked]
    if query.may_be_lowered_by_load:
        _offer_samples(model, encoded, computed)
    return Answered(
        plans=[
            Plan(
                one.computed.choice,
                (plan.degraded or one.given_up) and falls_short(model.manifest, one, wanted),
            )
            for one in looked
        ],
        computed=computed,
        before=[one.before for one in looked],
        receipts=[_receipt(model.manifest, one) for one in looked],
        images=run.images,
        measured=Measured(run.decode_s, [one.answer for one in computed], serving.now() - request.state.started_s),
    )


def record_answered(request: Request, serving: Serving, model: ServedModel, answered: Answered) -> None:
    """Call it well, and once its answer has left, hand what it cost to the metrics and leave its account."""
    request.state.outcome = "ok"
    request.state.held.callback(_record, request, serving, model, answered)


def _record(request: Request, serving: Serving, model: ServedModel, answered: Answered) -> None:
    thresholds = [plan.choice.threshold for plan in answered.plans]
    degraded = any(plan.degraded for plan in answered.plans)
    fresh = [receipt for receipt, one in zip(answered.receipts, answered.computed, strict=True) if not one.cached]
    looks = sum(first is not None for first in answered.before)  # one that a cache had is none: there was no first
    record(serving, model, fresh, thresholds, answered.measured, degraded=degraded, second_looks=looks)
    request.state.account = make_account(
        answered.receipts,
        thresholds,
        answered.measured,
        size_px=answered.plans[0].choice.size_px,
        degraded=degraded,
        cached=len(answered.plans) - len(fresh),
    )


def _plan(serving: Serving, model: ServedModel, query: SpendQuery, deadline: float) -> tuple[Choice, Plan]:
    """What a request asks for, and what it gets."""
    default_preset = serving.settings.default_preset
    wanted = choose(
        model.manifest,
        threshold=query.threshold,
        compute=query.compute,
        preset=query.preset,
        size_px=query.size,
        sure=query.sure,
        default_preset=default_preset,
    )
    if query.again is not None:
        wanted = look_again_at(model.manifest, wanted, query.again)
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
    """Decodes images and asks the queue, once for a look; remembers the images and how long decoding took."""

    def __init__(
        self, request: Request, serving: Serving, model: ServedModel, deadline: float, *, no_cache: bool
    ) -> None:
        self._request = request
        self._serving = serving
        self._model = model
        self._cache = None if no_cache else model.cache
        self._deadline = deadline
        self.images: list[NDArray[np.uint8]] = []
        self.decode_s = 0.0

    async def look(
        self, encoded: Sequence[bytes], choice: Choice, *, later_macs: float = 0.0, since_s: float | None = None
    ) -> list[Computed]:
        """The answers of one look, from the cache if it has them; the batcher says what the last two are."""
        compute = partial(self._compute, choice, later_macs, since_s)
        if self._cache is None:
            return [Computed(choice, answer) for answer in await compute(encoded)]
        return await self._cache.answers(encoded, choice, compute)

    async def look_again(
        self, encoded: Sequence[bytes], first: Sequence[Computed], choice: Choice, *, may_give_up: bool
    ) -> list[Looked]:
        """The answers to a second look where those of `first` aren't as sure as `choice` wants, else `first`.

        Raises:
            ServiceError: why there can be no second look now, unless `may_give_up`: then the first ones answer.
        """
        looked, images = [Looked(one) for one in first], self.images
        again = unsure(self._model.manifest, first, choice)
        self._model.cost.learn_looks(*choice, images=len(first), again=len(again))
        second_choice = second_of(self._model.manifest, choice)
        if not again or second_choice is None:
            return looked
        since_s = getattr(self._request.state, "admitted_s", None)  # None if a cache had all first looks
        try:
            async with asyncio.timeout_at(self._deadline - _REPLY_S if may_give_up else None):
                second = await self.look([encoded[i] for i in again], second_choice, since_s=since_s)
        except (Overloaded, DeadlinePassed, NotReady, TimeoutError):
            if not may_give_up:
                raise
            self.images = images
            return [one._replace(given_up=index in again) for index, one in enumerate(looked)]
        for index, one in zip(again, second, strict=True):
            looked[index] = merge(first[index], one)
        if len(images) == len(encoded) and len(self.images) == len(again):  # else a cache had some, and nobody draws
            for index, image in zip(again, self.images, strict=True):
                images[index] = image
        self.images = images
        return looked

    async def _compute(
        self, choice: Choice, later_macs: float, since_s: float | None, encoded: Sequence[bytes]
    ) -> list[Answer]:
        """The answers to images that nobody has computed yet; leaves them decoded in `images`."""
        started_s = self._serving.now()
        interpolation = self._model.manifest.preprocessing.interpolation
        self.images = await self._serving.decoders.decode(encoded, choice.size_px, interpolation)
        self.decode_s += self._serving.now() - started_s
        thresholds = [choice.threshold] * len(encoded)
        return await ask(
            self._request,
            self._model,
            self.images,
            thresholds,
            self._deadline,
            later_macs=later_macs,
            since_s=since_s,
        )


def _receipt(manifest: Manifest, looked: Looked) -> Receipt:
    one, first = looked.computed, looked.before
    receipt = make_receipt(manifest, one.choice, one.answer.kept)
    if first is None:
        return receipt
    return add_macs(receipt, make_receipt(manifest, first.choice, first.answer.kept))


def _offer_samples(model: ServedModel, encoded: Sequence[bytes], computed: Sequence[Computed]) -> None:
    """Let the quality guard choose among the answers that had less than full compute."""
    full_px = model.manifest.full.size_px
    for image, one in zip(encoded, computed, strict=True):
        if not one.cached and (one.choice.threshold or one.choice.size_px < full_px):
            model.guard.offer(image, int(one.answer.logits.argmax()))
