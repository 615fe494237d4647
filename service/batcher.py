"""The queue: admission, deadlines, batches, answers. The only file with futures; it knows no HTTP and no model.

The shape is that of text-embeddings-inference's queue: nobody ever waits for company. An idle engine takes what is
there at once; while it runs, arrivals are staged in the next batch (`backlog.py`), which stays open until the engine is
free. A batch holds one input size, any mix of thresholds, and no more predicted work than `max_batch_work_s`; who is
due first goes first. The queue is bounded in images and in seconds of predicted work.

Every accepted image resolves exactly once: an answer, a typed error, its deadline, or its caller's cancellation. Dead
entries never reach the engine, and a run that nobody waits for any more is terminated. A batch that fails is run again
row by row, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from service.backlog import Backlog
from service.batch import PATIENCE_S, Answer, Batch, BatchStats, Entry, Reason
from service.cost import Cost
from service.engine import Engine, EngineOutput, check_output
from service.errors import InferenceFailed, NotReady, Overloaded

logger = logging.getLogger("skipvit.batcher")


class Batcher:
    """Admits images, runs them in batches on one engine thread, and answers each.

    Every method belongs to the event loop; only `_infer` runs on the engine's thread.
    """

    def __init__(
        self,
        engine: Engine,
        cost: Cost,
        *,
        max_batch_size: int,
        max_pending: int,
        max_batch_work_s: float = math.inf,
        max_pending_work_s: float = math.inf,
        on_batch: Callable[[BatchStats], None] = lambda stats: None,
        on_terminate: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._cost = cost
        self._max_pending = max_pending
        self._max_batch_work_s = max_batch_work_s
        self._max_pending_work_s = max_pending_work_s
        self._on_batch = on_batch
        self._on_terminate = on_terminate
        self._clock = clock
        # A closure over what it needs: one over `self` would be a cycle, and keep a replaced model in memory.
        self._backlog = Backlog(
            max_batch_size=max_batch_size, affords=lambda macs: cost.seconds(macs) <= max_batch_work_s
        )
        self._running: Batch | None = None
        self._run_until_s: float | None = None  # when the engine's run is predicted to end; None: it doesn't run
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()  # set while nothing is pending
        self.idle.set()
        self._refusing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self.last_progress = clock()

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    def now(self) -> float:
        """The clock that deadlines are measured with."""
        return self._clock()

    @property
    def pending(self) -> int:
        """Images accepted and not yet answered."""
        return len(self._backlog) + (len(self._running.entries) if self._running else 0)

    @property
    def pending_work_s(self) -> float:
        """Seconds that the engine will need for all pending images and the second looks that they will bring."""
        return self._after_run_s(self._backlog.macs)

    @property
    def stalled_s(self) -> float:
        """Seconds since the last progress while there is work; 0 when idle, infinite if the loop is gone."""
        if self._task is not None and self._task.done() and not self._refusing:
            return math.inf
        return self._clock() - self.last_progress if self.pending else 0.0

    def run_s(self, size_px: int, threshold: float, images: int) -> float:
        """Seconds that such images take in the engine alone; 0 while nothing is known."""
        return self._cost.seconds(images * self._cost.macs(size_px, threshold))

    def finish_s(self, size_px: int, threshold: float, images: int, deadline: float) -> float:
        """Seconds until such images would be answered if they came now; 0 while nothing is known.

        Counts the rest of the running batch, what is due before, and the company their own batch may have.
        """
        ahead, company = self._backlog.macs_around(min(deadline, self._clock() + PATIENCE_S), size_px)
        company_s = min(self._cost.seconds(company), self._max_batch_work_s) if company else 0.0
        return self._after_run_s(ahead + images * self._cost.macs(size_px, threshold)) + company_s

    def check_room(self, images: int, *, counted: bool = False) -> None:
        """Raise what `submit_many` would raise for so many images now: Overloaded or NotReady."""
        if self._refusing or self._task is None:
            raise NotReady("the service is shutting down" if self._refusing else "the service is starting")
        if not self._has_room(images, counted) and self._backlog.has_dead(self._clock()):
            self._backlog.sweep(self._clock())
        if not self._has_room(images, counted):
            work_s = self.pending_work_s
            raise Overloaded(
                f"{len(self._backlog)} images wait, which take {work_s:.2f} s: the queue is full, try again later",
                retry_after_s=work_s,
            )

    def submit(self, image: NDArray[np.uint8], threshold: float, deadline: float | None) -> asyncio.Future[Answer]:
        """Accept one image; see `submit_many`."""
        return self.submit_many([image], [threshold], deadline)[0]

    def submit_many(
        self,
        images: Sequence[NDArray[np.uint8]],
        thresholds: Sequence[float],
        deadline: float | None,
        *,
        later_macs: float = 0.0,
        since_s: float | None = None,
    ) -> list[asyncio.Future[Answer]]:
        """Accept all images (S, S, 3) or none; each future resolves once. Cancel one to withdraw its image.

        Args:
            images: decoded images; they must not change until answered.
            thresholds: one for each image.
            deadline: the clock's time after which nobody wants the answers.
            later_macs: of the second look that each is expected to bring, on average; admission counts them.
            since_s: of second looks, when their first ones were admitted, with whom their work was counted.

        Raises:
            Overloaded: too many images or too much work wait.
            NotReady: the batcher drains or hasn't started.
        """
        self.check_room(len(images), counted=since_s is not None)
        now_s = self._clock()
        if not self.pending:
            self.last_progress = now_s
        loop = asyncio.get_running_loop()
        futures = []
        for image, threshold in zip(images, thresholds, strict=True):
            macs = self._cost.macs(image.shape[0], threshold)
            entry = Entry(image, threshold, deadline, now_s, macs, loop.create_future(), later_macs, since_s)
            if deadline is not None:
                entry.expire_in(deadline - now_s)
            entry.future.add_done_callback(self._stop_if_unwanted)
            self._backlog.add(entry, while_busy=self._running is not None)
            futures.append(entry.future)
        self.idle.clear()
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
        self._backlog.clear()
        self._running = None
        self._thread.shutdown(wait=in_time, cancel_futures=True)
        return in_time

    def abandon(self) -> None:
        """Refuse new images and fail the accepted ones now, so that callers hear of it before the process ends."""
        self._refusing = True
        for entry in (*(self._running.entries if self._running else ()), *self._backlog):
            entry.fail(NotReady("the service stopped before the answer was there"))

    def _after_run_s(self, macs: float) -> float:
        """Seconds until so many MACs are done, after the running batch and the second looks that it brings."""
        left_s = max(0.0, self._run_until_s - self._clock()) if self._run_until_s else 0.0
        macs += sum(entry.later_macs for entry in self._running.entries) if self._running else 0.0
        return left_s + (self._cost.seconds(macs) if macs else 0.0)

    def _has_room(self, images: int, counted: bool) -> bool:
        if len(self._backlog) + images > self._max_pending:
            return False
        return counted or not len(self._backlog) or self.pending_work_s <= self._max_pending_work_s

    def _stop_if_unwanted(self, _: asyncio.Future[Answer]) -> None:
        """Terminate the engine's run once nobody waits for any of its rows."""
        if self._run_until_s is not None and self._running is not None and self._running.is_unwanted:
            self._on_terminate()
            self._engine.terminate()

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            batch = self._backlog.take(self._clock())
            if batch is None:
                if self._refusing:
                    return
                self._wake.clear()
                self.idle.set()
                continue
            self._running = batch
            await self._supervise(batch)
            self._running = None
            self._backlog.recycle(batch)

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
        running = self._start(batch, rows := range(len(batch.entries)))
        self._backlog.open_next()
        try:
            await running
        except Exception as error:
            if batch.is_unwanted:
                return  # it was terminated
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
        self._run_until_s = started_s + self._cost.seconds(sum(entry.macs for entry in entries))
        images = batch.buffer[rows.start : rows.stop]
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._infer, images, thresholds)
        return self._resolve(job, entries, thresholds, started_s, batch.size_px, reason or batch.reason)

    async def _resolve(
        self,
        job: asyncio.Future[tuple[EngineOutput, float]],
        entries: list[Entry],
        thresholds: NDArray[np.float32],
        started_s: float,
        size_px: int,
        reason: Reason,
    ) -> None:
        try:
            output, inference_s = await job
        finally:
            self._run_until_s = None
        for entry, logits, kept in zip(entries, output.logits, output.kept, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(logits, kept, len(entries), started_s - entry.admitted_s, inference_s))
        if not len(self._backlog):
            await asyncio.sleep(0)  # the engine has nothing to do: answers leave before their account is made
        error_ratio = self._cost.learn(size_px, thresholds, output.kept, inference_s)
        oldest_s = started_s - min(entry.admitted_s for entry in entries)
        self._on_batch(BatchStats(size_px, len(entries), reason, oldest_s, inference_s, error_ratio))

    def _infer(self, images: NDArray[np.uint8], thresholds: NDArray[np.float32]) -> tuple[EngineOutput, float]:
        """On the engine's thread: run, check, measure."""
        started_s = self._clock()
        output = self._engine.infer(images, thresholds)
        check_output(output, rows=len(images))
        return output, self._clock() - started_s
