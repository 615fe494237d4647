"""The quality guard: a share of the answers is computed again at full compute, when the engine has nothing else to do.

How often both agree on the first label is the live price of spending less; if it falls below the operator's minimum,
the controller is told to lower less. Samples wait in a short list for an idle moment, so that what was answered under
load is judged soon after; the newest push out the oldest. It never delays a request by more than one image's run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.batcher import Batcher
from service.errors import ServiceError

logger = logging.getLogger("skipvit.guard")

_MAX_WAITING = 32  # samples
_MAX_SAMPLE_BYTES = 1 << 20  # of one encoded image; larger ones aren't sampled
_WINDOW = 200  # samples that the agreement is taken over
_VERDICT_EVERY = 20  # samples
_TIMEOUT_S = 30.0  # for one sample


class Sample(NamedTuple):
    """An answered image."""

    encoded: bytes
    label: int


class Guard:
    """Samples the answers of one model."""

    def __init__(
        self,
        batcher: Batcher,
        decode: Callable[[bytes], Awaitable[NDArray[np.uint8]]],
        *,
        ratio: float,
        min_agreement: float,
        random: Callable[[], float],
        on_sample: Callable[[bool, float], None],
        on_verdict: Callable[[bool], None],
    ) -> None:
        """Build a guard that samples nothing before `start`.

        Args:
            batcher: the model's queue.
            decode: bytes of an image to (S, S, 3) at the full size.
            ratio: share of the answers to sample.
            min_agreement: share of samples that must agree.
            random: uniform in [0, 1).
            on_sample: told whether a sample agreed, and the share of the last ones that did.
            on_verdict: told now and then whether the agreement is fine.
        """
        self._batcher = batcher
        self._decode = decode
        self._ratio = ratio
        self._min_agreement = min_agreement
        self._random = random
        self._on_sample = on_sample
        self._on_verdict = on_verdict
        self._samples: deque[Sample] = deque(maxlen=_MAX_WAITING)
        self._arrived = asyncio.Event()
        self._agreed: deque[bool] = deque(maxlen=_WINDOW)
        self._evidence: deque[bool] = deque(maxlen=_WINDOW)  # the same, since a verdict lowered less last
        self._judged = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to judge; needs a running event loop."""
        if self._ratio:
            self._task = asyncio.create_task(self._serve(), name="guard")

    def stop(self) -> None:
        """Judge no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # whose traceback would hold this guard, and so the model, in a cycle

    def offer(self, encoded: bytes, label: int) -> None:
        """An image was answered with less than full compute; it may become a sample."""
        if self._random() < self._ratio and len(encoded) <= _MAX_SAMPLE_BYTES:
            self._samples.append(Sample(encoded, label))
            self._arrived.set()

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            await self._batcher.idle.wait()
            if not self._samples:
                self._arrived.clear()
                continue
            sample = self._samples.pop()
            try:
                label = await self._full_label(sample.encoded)
            except ServiceError:
                continue  # refused or failed: a sample is worth no second try
            except Exception:  # the guard outlives whatever it is
                logger.exception("the quality guard met an unexpected error and goes on. This is a bug.")
                continue
            self._judge(label == sample.label)

    async def _full_label(self, encoded: bytes) -> int:
        image = await self._decode(encoded)
        answer = await self._batcher.submit(image, 0.0, self._batcher.now() + _TIMEOUT_S)
        return int(answer.logits.argmax())

    def _judge(self, agreed: bool) -> None:
        self._agreed.append(agreed)
        self._evidence.append(agreed)
        self._judged += 1
        agreement = sum(self._agreed) / len(self._agreed)
        self._on_sample(agreed, agreement)
        if self._judged % _VERDICT_EVERY == 0:
            share = sum(self._evidence) / len(self._evidence)
            fine = share >= self._min_agreement
            if not fine:
                self._evidence.clear()  # one bad stretch is one reason, not one with every verdict until it's forgotten
                logger.warning("only %.1f %% of sampled answers agree with full compute", 100 * share)
            self._on_verdict(fine)
