"""The queue: admission, deadlines, batches, answers. The only file with futures; it knows no HTTP and no model.

The shape is that of text-embeddings-inference's queue: nobody ever waits for company. An idle engine takes what is
there at once; while it runs, arrivals are copied into the staging buffer of the next batch, which stays open until the
engine is free or the batch is full. One batch holds one input size (the oldest waiting image decides which, so no size
starves), and any mix of thresholds.

Every accepted image resolves exactly once: an answer, a typed error, its deadline, or its caller's cancellation. Dead
entries never reach the engine. A batch that fails is run again row by row, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.batch import Answer, Batch, BatchStats, Entry, Reason
from service.engine import Engine, EngineOutput, check_output
from service.errors import DeadlinePassed, InferenceFailed, NotReady, Overloaded

logger = logging.getLogger("skipvit.batcher")

_NEW_MEASUREMENT_WEIGHT = 0.2  # of the moving average of seconds per image


class Batcher:
    """Admits images, runs them in batches on one engine thread, and answers each.

    Every method belongs to the event loop; only `_infer` runs on the engine's thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_size: int,
        max_pending: int,
        on_batch: Callable[[BatchStats], None] = lambda stats: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_batch_size = max_batch_size
        self._max_pending = max_pending
        self._on_batch = on_batch
        self._clock = clock
        self._queue: deque[Entry] = deque()  # what fits no open batch, in order of arrival
        self._open: Batch | None = None
        self._running: Batch | None = None
        self._spare: list[NDArray[np.uint8]] = []
        self._wake = asyncio.Event()
        self._refusing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._seconds_per_image = 0.0
        self.last_progress = clock()

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    def now(self) -> float:
        """The clock that deadlines and durations are measured with."""
        return self._clock()

    @property
    def waiting(self) -> int:
        """Images accepted and not yet with the engine."""
        return len(self._queue) + (len(self._open.entries) if self._open else 0)

    @property
    def pending(self) -> int:
        """Images accepted and not yet answered."""
        return self.waiting + (len(self._running.entries) if self._running else 0)

    @property
    def pending_work_s(self) -> float:
        """Seconds the engine needs for all pending images, at the rate measured lately."""
        return self.pending * self._seconds_per_image

    @property
    def stalled_s(self) -> float:
        """Seconds since the last progress while there is work; 0 when idle, infinite if the loop is gone."""
        if self._task is not None and self._task.done() and not self._refusing:
            return math.inf
        return self._clock() - self.last_progress if self.pending else 0.0

    def check_room(self, images: int) -> None:
        """Raise what `submit_many` would raise for so many images now: Overloaded or NotReady."""
        if self._refusing or self._task is None:
            raise NotReady("the service is shutting down" if self._refusing else "the service is starting")
        if self.waiting + images > self._max_pending:
            self._sweep()
        if self.waiting + images > self._max_pending:
            raise Overloaded(
                f"{self.waiting} images wait already; the limit is {self._max_pending}",
                retry_after_s=self.pending_work_s,
            )

    def submit(self, image: NDArray[np.uint8], threshold: float, deadline: float | None) -> asyncio.Future[Answer]:
        """Accept one image; see `submit_many`."""
        return self.submit_many([image], [threshold], deadline)[0]

    def submit_many(
        self, images: Sequence[NDArray[np.uint8]], thresholds: Sequence[float], deadline: float | None
    ) -> list[asyncio.Future[Answer]]:
        """Accept all images (S, S, 3) or none; each future resolves once. Cancel one to withdraw its image.

        Args:
            images: decoded images; they must not change until answered.
            thresholds: one for each image.
            deadline: the clock's time after which nobody wants the answers.

        Raises:
            Overloaded: too many images wait.
            NotReady: the batcher drains or hasn't started.
        """
        self.check_room(len(images))
        now_s = self._clock()
        if not self.pending:
            self.last_progress = now_s
        loop = asyncio.get_running_loop()
        futures = []
        for image, threshold in zip(images, thresholds, strict=True):
            entry = Entry(image, threshold, deadline, now_s, loop.create_future())
            if deadline is not None:  # also answers in time when the engine hangs
                late = DeadlinePassed("the deadline passed before the answer was there")
                timer = loop.call_later(max(0.0, deadline - now_s), entry.fail, late)
                entry.future.add_done_callback(partial(_cancel, timer))
            self._place(entry)
            futures.append(entry.future)
        self._wake.set()
        return futures

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new images, finish the accepted ones, stop. False if some had to be failed after `timeout_s`."""
        self._refusing = True
        self._wake.set()
        in_time = True
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=timeout_s)
            for task in late:
                in_time = False
                task.cancel()
                await asyncio.wait({task})
        self.abandon()
        self._queue.clear()
        self._open = self._running = None
        self._thread.shutdown(wait=in_time, cancel_futures=True)
        return in_time

    def abandon(self) -> None:
        """Refuse new images and fail the accepted ones now, so that callers hear of it before the process ends."""
        self._refusing = True
        batches = [batch.entries for batch in (self._running, self._open) if batch is not None]
        for entries in (*batches, self._queue):
            for entry in entries:
                entry.fail(NotReady("the service stopped before the answer was there"))

    def _place(self, entry: Entry) -> None:
        if self._open is None:
            self._open = self._new_batch(entry.image.shape)
        if not self._open.admit(entry):
            self._queue.append(entry)

    def _new_batch(self, shape: tuple[int, ...]) -> Batch:
        wanted = (self._max_batch_size, *shape)
        for index, buffer in enumerate(self._spare):
            if buffer.shape == wanted:
                return Batch(self._spare.pop(index), while_busy=self._running is not None)
        return Batch(np.empty(wanted, np.uint8), while_busy=self._running is not None)

    def _pull(self) -> None:
        """Place all that waits anew, oldest first; what fits the open batch moves into it."""
        now_s = self._clock()
        waiting, self._queue = self._queue, deque()
        for entry in waiting:
            if not entry.is_dead(now_s):
                self._place(entry)

    def _sweep(self) -> None:
        """Forget dead entries, which would otherwise count against the limit until their batch is due."""
        if self._open is not None:
            self._open.drop_dead(self._clock())
        self._pull()

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            batch, self._open = self._open, None
            if batch is None:
                if self._refusing:
                    return
                self._wake.clear()
                continue
            batch.drop_dead(self._clock())
            if not batch.is_full:  # dead rows made room for images that had found it full
                self._open = batch
                self._pull()
                self._open = None
            if batch.entries:
                self._running = batch
                await self._supervise(batch)
                self._running = None
            else:
                self._pull()
            self._spare.append(batch.buffer)

    async def _supervise(self, batch: Batch) -> None:
        """Run a batch; whatever happens, its entries are resolved and the loop lives on."""
        self.last_progress = self._clock()
        try:
            await self._run(batch)
        except Exception:  # the loop outlives whatever it is; the entries below are told
            logger.exception("the batch loop met an unexpected error and goes on. This is a bug.")
        for entry in batch.entries:
            entry.fail(InferenceFailed("inference failed"))
        self.last_progress = self._clock()

    async def _run(self, batch: Batch) -> None:
        rows = range(len(batch.entries))
        running = self._start(batch, rows)
        self._pull()  # the next batch opens and is staged while this one runs
        try:
            await running
        except Exception as error:
            logger.warning("a batch of %d failed: %r", len(rows), error.__cause__ or error)
            if len(rows) == 1:
                batch.entries[0].fail(InferenceFailed("inference failed on this image"))
                return
            for row in rows:
                await self._retry(batch, row)

    async def _retry(self, batch: Batch, row: int) -> None:
        """Run one row of a failed batch alone."""
        if batch.entries[row].is_dead(self._clock()):
            return
        try:
            await self._start(batch, range(row, row + 1), reason="retry")
        except Exception as error:
            logger.warning("an image failed alone, too: %r", error.__cause__ or error)
            batch.entries[row].fail(InferenceFailed("inference failed on this image"))
        self.last_progress = self._clock()

    def _start(self, batch: Batch, rows: range, reason: Reason | None = None) -> Awaitable[None]:
        """Hand rows of a batch to the engine's thread now; the awaitable resolves their entries."""
        entries = batch.entries[rows.start : rows.stop]
        thresholds = np.array([entry.threshold for entry in entries], np.float32)
        started_s = self._clock()
        job = asyncio.get_running_loop().run_in_executor(
            self._thread, self._infer, batch.buffer[rows.start : rows.stop], thresholds
        )
        return self._resolve(job, entries, started_s, batch.size_px, reason or batch.reason)

    async def _resolve(
        self,
        job: asyncio.Future[tuple[EngineOutput, float]],
        entries: list[Entry],
        started_s: float,
        size_px: int,
        reason: Reason,
    ) -> None:
        output, inference_s = await job
        for entry, logits, kept in zip(entries, output.logits, output.kept, strict=True):
            if not entry.future.done():
                queue_s = started_s - entry.admitted_s
                entry.future.set_result(Answer(logits, kept, len(entries), queue_s, inference_s))
        per_image_s = inference_s / len(entries)
        weight = _NEW_MEASUREMENT_WEIGHT if self._seconds_per_image else 1.0
        self._seconds_per_image += weight * (per_image_s - self._seconds_per_image)
        oldest_queue_s = started_s - min(entry.admitted_s for entry in entries)
        self._on_batch(BatchStats(size_px, len(entries), reason, oldest_queue_s, inference_s))

    def _infer(self, images: NDArray[np.uint8], thresholds: NDArray[np.float32]) -> tuple[EngineOutput, float]:
        """On the engine's thread: run, check, measure."""
        started_s = self._clock()
        output = self._engine.infer(images, thresholds)
        check_output(output, rows=len(images))
        return output, self._clock() - started_s


def _cancel(timer: asyncio.TimerHandle, _: asyncio.Future[Answer]) -> None:
    timer.cancel()
