"""The queue: admission, deadlines, batches, answers. The only file with futures; it knows no HTTP and no model.

The shape is that of text-embeddings-inference's queue: nobody ever waits for company. An idle engine takes what is
there at once; while it runs, arrivals are staged in the next batch (`backlog.py`), which stays open until the engine is
free, or the one beside it. A batch holds one input size, any mix of thresholds, and no more predicted work than
`max_batch_work_s`; who is due first goes first. The queue is bounded in images and in seconds of predicted work.

The engine's threads take their next batch themselves: were it the event loop that hands it over, they would stand still
while the loop is busy with a batch's answers and the requests that follow them.

Every accepted image resolves exactly once: an answer, a typed error, its deadline, or its caller's cancellation. Dead
entries never reach the engine, and a run that nobody waits for any more is terminated. A batch that fails is run again
row by row, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.backlog import Backlog
from service.batch import Answer, Batch, BatchStats, Entry
from service.cost import Cost
from service.engine import Engine
from service.errors import InferenceFailed, NotReady, Overloaded
from service.runner import Run, Runner, Runners
from service.workload import Workload


class Batcher:
    """Admits images, runs them in batches on the engine's threads, and answers each.

    Public methods belong to the event loop, futures too. What several threads change is changed under `_lock`.
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
        on_busy: Callable[[float], None] = lambda seconds: None,
        on_terminate: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runners = Runners(engine, cost, on_terminate, clock)
        self._cost = cost
        self._max_pending = max_pending
        self._max_pending_work_s = max_pending_work_s
        self._on_batch = on_batch
        self._on_busy = on_busy
        self._clock = clock
        # A closure over what it needs: one over `self` would be a cycle, and keep a replaced model in memory.
        self._backlog = Backlog(
            max_batch_size=max_batch_size, affords=lambda macs: cost.seconds(macs) <= max_batch_work_s
        )
        self._lock = threading.RLock()
        # What the runners' threads wait for: an image; an image beside what runs.
        self._arrived, self._arrived_beside = threading.Condition(self._lock), threading.Condition(self._lock)
        self._taken: list[Batch] = []  # with the engine, or their answers on the way to the loop
        self.work = Workload(
            self._backlog,
            self._taken,
            self._runners,
            cost,
            self._lock,
            max_batch_work_s=max_batch_work_s,
            clock=clock,
        )
        self._resting = True  # the first runner's thread waits for work
        self._at_work = 0  # threads that haven't ended
        self._refusing = False
        self._gave_up = False  # on accepted work
        self._told_busy_s = 0.0
        self.idle = asyncio.Event()  # set while nothing is pending
        self.idle.set()
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._admitted_s = clock()  # of the first since the last time that nothing was pending

    def start(self) -> None:
        """Begin to serve; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        for index, runner in enumerate(self._runners):
            self._at_work += 1
            arguments = self._loop, runner, index == 0
            threading.Thread(target=self._work, args=arguments, name="engine", daemon=True).start()

    def now(self) -> float:
        """The clock that deadlines are measured with."""
        return self._clock()

    @property
    def pending(self) -> int:
        """Images accepted and not yet answered."""
        with self._lock:
            return len(self._backlog) + sum(len(batch.entries) for batch in self._taken)

    @property
    def stalled_s(self) -> float:
        """Seconds since the last progress while there is work; 0 when idle, infinite if the thread is gone."""
        if self._ended.is_set() and not self._refusing:
            return math.inf
        return self._clock() - max(self._admitted_s, self._runners.last_progress) if self.pending else 0.0

    def check_room(self, images: int, *, counted: bool = False) -> None:
        """Raise what `submit_many` would raise for so many images now: Overloaded or NotReady."""
        with self._lock:
            if self._refusing or self._loop is None:
                raise NotReady("the service is shutting down" if self._refusing else "the service is starting")
            if not self._has_room(images, counted) and self._backlog.has_dead(self._clock()):
                self._backlog.sweep(self._clock())
            if not self._has_room(images, counted):
                waiting, work_s = len(self._backlog), self.work.pending_work_s
                raise Overloaded(
                    f"{waiting} images wait, which take {work_s:.2f} s: the queue is full, try again later",
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
        loop = asyncio.get_running_loop()
        futures = []
        with self._lock:
            self.check_room(len(images), counted=since_s is not None)
            now_s = self._clock()
            if not self.pending:
                self._admitted_s = now_s
            for image, threshold in zip(images, thresholds, strict=True):
                macs = self._cost.macs(image.shape[0], threshold)
                entry = Entry(image, threshold, deadline, now_s, macs, loop.create_future(), later_macs, since_s)
                if deadline is not None:
                    entry.expire_in(deadline - now_s)
                entry.future.add_done_callback(lambda _: self._runners.terminate_unwanted())
                self._backlog.add(entry)
                futures.append(entry.future)
            # And not now: who comes in the same turn of the loop goes along.
            loop.call_soon(self._wake, self._arrived if self._resting else self._arrived_beside)
        self.idle.clear()
        return futures

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new images, finish the accepted ones, stop. False if some had to be failed after `timeout_s`."""
        with self._lock:
            self._refusing = True
            self._arrived.notify()
            self._arrived_beside.notify()
        in_time = True
        if self._loop is not None:
            try:
                await asyncio.wait_for(self._ended.wait(), timeout_s)
            except TimeoutError:
                in_time = False
        self.abandon()
        with self._lock:
            self._backlog.clear()
            self._taken.clear()
        return in_time and not self._gave_up

    def abandon(self) -> None:
        """Refuse new images and fail the accepted ones now, so that callers hear of it before the process ends."""
        with self._lock:
            self._refusing = True
            accepted = [*(entry for batch in self._taken for entry in batch.entries), *self._backlog]
        for entry in accepted:
            self._gave_up |= not entry.future.done()
            entry.fail(NotReady("the service stopped before the answer was there"))

    def _has_room(self, images: int, counted: bool) -> bool:
        if len(self._backlog) + images > self._max_pending:
            return False
        return counted or not len(self._backlog) or self.work.pending_work_s <= self._max_pending_work_s

    def _wake(self, arrived: threading.Condition) -> None:
        with self._lock:
            arrived.notify()

    def _rest(self) -> None:
        if self._resting and not self.pending:
            self.idle.set()

    def _end(self) -> None:
        self._at_work -= 1
        if not self._at_work or not self._refusing:  # else the others finish what was accepted
            self._ended.set()

    def _finish(self, batch: Batch, run: Run | None) -> None:
        """Resolve whoever waits for the batch, whatever happened; `run` is of all its rows, if that went well."""
        try:
            if run is not None:
                self._resolve(run)
        finally:
            for entry in batch.entries:
                entry.fail(InferenceFailed("inference failed on this image"))
            with self._lock:
                if batch in self._taken:
                    self._taken.remove(batch)
                self._backlog.recycle(batch)
            told_s, self._told_busy_s = self._told_busy_s, self._runners.busy_s
            self._on_busy(self._told_busy_s - told_s)

    def _resolve(self, run: Run) -> None:
        for entry, logits, kept in zip(run.entries, run.output.logits, run.output.kept, strict=True):
            if not entry.future.done():
                queue_s = run.started_s - entry.admitted_s
                entry.future.set_result(Answer(logits, kept, len(run.entries), queue_s, run.inference_s))
        asyncio.get_running_loop().call_soon(self._account, run)  # answers leave before their account is made

    def _account(self, run: Run) -> None:
        error_ratio = self._cost.learn(run.size_px, run.thresholds, run.output.kept, run.engine_s)
        oldest_s = run.started_s - min(entry.admitted_s for entry in run.entries)
        stats = BatchStats(run.size_px, len(run.entries), run.reason, oldest_s, run.inference_s, error_ratio)
        self._on_batch(stats)

    def _work(self, loop: asyncio.AbstractEventLoop, runner: Runner, is_first: bool) -> None:
        """A runner's thread: batch after batch, without asking the loop."""

        def tell(callback: Callable[..., object], *args: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody is left who waits
                loop.call_soon_threadsafe(callback, *args)

        # By way of `call_soon` the loop rests only once the account of the last run is made.
        rest = partial(tell, loop.call_soon, self._rest)
        try:
            runner.work(partial(self._next, is_first, rest), partial(tell, self._resolve), partial(tell, self._finish))
        finally:
            tell(self._end)

    def _next(self, is_first: bool, rest: Callable[[], None]) -> Batch | None:
        """The batch that comes next, once there is one; None if no more will come.

        The runner beside the first takes what that leaves while it is busy.
        """
        arrived = self._arrived if is_first else self._arrived_beside
        with self._lock:
            at_once = True
            while (batch := self._take() if is_first or not self._resting else None) is None and not self._refusing:
                at_once = False
                self._resting |= is_first
                rest()
                arrived.wait()
            self._resting &= not is_first
            if batch is not None:
                batch.while_busy = at_once
            return batch

    def _take(self) -> Batch | None:
        batch = self._backlog.take(self._clock())
        if batch is not None:
            self._taken.append(batch)
            self._backlog.open_next()
            if len(self._backlog):
                self._arrived_beside.notify()
        return batch
