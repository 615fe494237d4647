"""What happens to a batch on a thread of the engine: a run of all its rows or, if that fails, of one after the other.

It measures each run and ends one that nobody waits for any more. Where the engine has another `beside` it, two batches
run at once, and each is charged its share of the time. It knows no queue, and resolves no future.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.batch import Batch, Entry, Reason
from service.cost import Cost
from service.engine import Engine, EngineOutput, at_once, check_output
from service.errors import InferenceFailed

logger = logging.getLogger("skipvit.batcher")


class Run(NamedTuple):
    """What the engine gave for rows of a batch, and when."""

    entries: list[Entry]
    thresholds: NDArray[np.float32]  # (B,)
    output: EngineOutput
    size_px: int
    reason: Reason
    started_s: float
    inference_s: float
    engine_s: float  # its share of that: a second in which two run is half a second of each


class Share:
    """Seconds of what several runs share: while n of them run, each is charged an nth of every second.

    That is processor sharing; the reading is its virtual time (Parekh and Gallager, 1993).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        self._busy_s = 0.0
        self._charged_s = 0.0  # to a run since ever
        self._read_s = clock()

    def read(self) -> float:
        """Seconds charged to a run since ever; the difference of two readings is what a run between them took."""
        return self._change(0)

    def begin(self) -> float:
        """One more runs; the reading."""
        return self._change(1)

    def end(self) -> float:
        """One fewer runs; the reading."""
        return self._change(-1)

    @property
    def busy_s(self) -> float:
        """Seconds in which anything ran, since ever."""
        self._change(0)
        return self._busy_s

    def _change(self, runs: int) -> float:
        with self._lock:
            now_s = self._clock()
            elapsed_s, self._read_s = now_s - self._read_s, now_s
            self._charged_s += elapsed_s / max(1, self._running)
            self._busy_s += elapsed_s if self._running else 0.0
            self._running += runs
            return self._charged_s


class Runner:
    """Runs batches, one at a time. `work` belongs to one thread, the rest to any."""

    def __init__(
        self, engine: Engine, share: Share, cost: Cost, on_terminate: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._share = share
        self._cost = cost
        self._on_terminate = on_terminate
        self._clock = clock
        self._lock = threading.Lock()  # of what runs: who terminates it must not hit the run after it
        self._running: Batch | None = None
        self._is_ending = False  # its run, for nobody waits
        self._until_s = 0.0  # the share's reading at which the last run is, or was, predicted to end
        self.last_progress = clock()

    @property
    def is_running(self) -> bool:
        """Whether the engine has a batch."""
        return self._running is not None

    @property
    def left_s(self) -> float:
        """Seconds of the engine that the run will take yet, as predicted; 0 if none runs."""
        return max(0.0, self._until_s - self._share.read()) if self._running is not None else 0.0

    def terminate_unwanted(self) -> None:
        """End the run if nobody waits for any of its rows."""
        with self._lock:
            if self._running is not None and not self._is_ending and self._running.is_unwanted:
                self._is_ending = True
                self._on_terminate()
                self._engine.terminate()

    def work(
        self,
        take: Callable[[], Batch | None],
        resolve: Callable[[Run], None],
        finish: Callable[[Batch, Run | None], None],
    ) -> None:
        """Run batch after batch until `take` gives None.

        Args:
            take: waits for the next batch.
            resolve: told the run of a row of a batch that failed as a whole.
            finish: told of every batch when nothing of it will run any more, and of its run if that went well.
        """
        while (batch := take()) is not None:
            run = self._run(batch)
            if run is None and len(batch.entries) > 1 and not batch.is_unwanted:
                for alone in self._each(batch):
                    resolve(alone)
                    del alone
            finish(batch, run)
            del batch, run  # or they would be kept while there is nothing to run

    def _run(self, batch: Batch) -> Run | None:
        """Run all rows; None if that failed, or was terminated."""
        try:
            return self._infer(batch, range(len(batch.entries)), batch.reason)
        except Exception as error:
            if not batch.is_unwanted:
                logger.warning("a batch of %d failed: %r", len(batch.entries), error.__cause__ or error)
            return None

    def _each(self, batch: Batch) -> Iterator[Run]:
        """Run the rows of a failed batch one by one; without those that are dead, or fail alone, too."""
        for row, entry in enumerate(batch.entries):
            if entry.is_dead(self._clock()):
                continue
            try:
                yield self._infer(batch, range(row, row + 1), "retry")
            except Exception as error:
                logger.warning("an image failed alone, too: %r", error.__cause__ or error)

    def _infer(self, batch: Batch, rows: range, reason: Reason) -> Run:
        entries = batch.entries[rows.start : rows.stop]
        thresholds = np.array([entry.threshold for entry in entries], np.float32)
        with self._lock:
            self.last_progress = started_s = self._clock()
            begun = self._share.begin()
            self._until_s = begun + self._cost.seconds(sum(entry.macs for entry in entries))
            self._running, self._is_ending = batch, False
        try:
            if batch.is_unwanted:
                raise InferenceFailed("nobody waits any more")
            output = self._engine.infer(batch.buffer[rows.start : rows.stop], thresholds)
            check_output(output, rows=len(entries))
        finally:
            with self._lock:
                engine_s = self._share.end() - begun
                self._running, ended_s = None, self._clock()
                self.last_progress = ended_s
        return Run(entries, thresholds, output, batch.size_px, reason, started_s, ended_s - started_s, engine_s)


class Runners:
    """The first one, and one beside it if the engine has that; as one where it doesn't matter which."""

    def __init__(
        self, engine: Engine, cost: Cost, on_terminate: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._share = Share(clock)
        self._all = [Runner(each, self._share, cost, on_terminate, clock) for each in at_once(engine)]

    def __iter__(self) -> Iterator[Runner]:
        return iter(self._all)

    @property
    def has_free(self) -> bool:
        """Whether one of them would run what comes at once."""
        return not all(runner.is_running for runner in self._all)

    @property
    def busy_s(self) -> float:
        """Seconds in which any of them ran anything, since ever."""
        return self._share.busy_s

    @property
    def left_s(self) -> float:
        """Seconds of the engine that all runs will take yet, as predicted."""
        return sum(runner.left_s for runner in self._all)

    @property
    def last_progress(self) -> float:
        """The clock's time when the oldest run began; if none runs, when the last one ended."""
        begun = [runner.last_progress for runner in self._all if runner.is_running]
        return min(begun) if begun else max(runner.last_progress for runner in self._all)

    def terminate_unwanted(self) -> None:
        """End each run that nobody waits for any row of."""
        for runner in self._all:
            runner.terminate_unwanted()
