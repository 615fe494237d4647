"""What happens to a batch on the engine's thread: a run of all its rows or, if that fails, of one after the other.

It measures each run and ends one that nobody waits for any more. It knows no queue, and resolves no future.
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
from service.engine import Engine, EngineOutput, check_output

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


class Runner:
    """Runs batches. `run` and `each` belong to the engine's thread, the rest to any."""

    def __init__(
        self, engine: Engine, cost: Cost, on_terminate: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._cost = cost
        self._on_terminate = on_terminate
        self._clock = clock
        self._lock = threading.Lock()  # of what runs: who terminates it must not hit the run after it
        self._running: Batch | None = None
        self._until_s = 0.0  # when the last run is, or was, predicted to end
        self.last_progress = clock()

    @property
    def left_s(self) -> float:
        """Seconds that the run will take yet, as predicted; 0 if none runs."""
        return max(0.0, self._until_s - self._clock()) if self._running is not None else 0.0

    def terminate_unwanted(self) -> None:
        """End the run if nobody waits for any of its rows."""
        with self._lock:
            if self._running is not None and self._running.is_unwanted:
                self._on_terminate()
                self._engine.terminate()

    def run(self, batch: Batch) -> Run | None:
        """Run all rows; None if that failed, or was terminated."""
        try:
            return self._infer(batch, range(len(batch.entries)), batch.reason)
        except Exception as error:
            if not batch.is_unwanted:
                logger.warning("a batch of %d failed: %r", len(batch.entries), error.__cause__ or error)
            return None

    def each(self, batch: Batch) -> Iterator[Run]:
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
            self._running, started_s = batch, self._clock()
            self._until_s = started_s + self._cost.seconds(sum(entry.macs for entry in entries))
            self.last_progress = started_s
        try:
            output = self._engine.infer(batch.buffer[rows.start : rows.stop], thresholds)
            check_output(output, rows=len(entries))
        finally:
            with self._lock:
                self._running, self.last_progress = None, self._clock()
        return Run(entries, thresholds, output, batch.size_px, reason, started_s, self.last_progress - started_s)
