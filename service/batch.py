"""One batch in the making: entries with their futures, and the staging buffer their images are copied into.

It knows when an entry is dead and how to keep rows contiguous; it knows no engine and no queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlinePassed

Reason = Literal["idle", "busy", "full", "cost", "retry"]

PATIENCE_S = 1.0  # after so long nobody who comes later goes first, however soon their deadline is


class Answer(NamedTuple):
    """What the engine gave for one image, and when."""

    logits: NDArray[np.float32]  # (classes,)
    kept: NDArray[np.bool_]  # (L, P)
    batch_size: int
    queue_s: float  # from admission to the start of its batch
    inference_s: float  # of the whole batch


@dataclass(frozen=True)
class BatchStats:
    """One run of the engine."""

    size_px: int
    rows: int
    reason: Reason  # why it left: engine idle; engine came free; rows used up; work used up; one row after a failure
    oldest_queue_s: float
    inference_s: float
    prediction_error_ratio: float | None  # actual over predicted seconds; None while nothing could be predicted


@dataclass(eq=False)
class Entry:
    """One accepted image and who waits for it."""

    image: NDArray[np.uint8]  # (S, S, 3)
    threshold: float
    deadline: float | None
    admitted_s: float
    macs: float  # predicted
    future: asyncio.Future[Answer]
    later_macs: float = 0.0  # predicted, of the second look that may follow
    since_s: float | None = None  # of a second look, when its first one was admitted
    # What the queue is ordered by: the deadline, or the end of its patience if that is sooner. A second look has the
    # patience that its first one left: what is begun is finished before more is begun.
    due_s: float = field(init=False)

    def __post_init__(self) -> None:
        patient_until_s = (self.admitted_s if self.since_s is None else self.since_s) + PATIENCE_S
        self.due_s = patient_until_s if self.deadline is None else min(self.deadline, patient_until_s)

    def is_dead(self, now_s: float) -> bool:
        """Nobody waits any more; one whose deadline has just passed is told so, by the loop: this is any thread's."""
        if self.future.done():
            return True
        if self.deadline is None or self.deadline > now_s:
            return False
        late = DeadlinePassed("the deadline passed while the image waited")
        self.future.get_loop().call_soon_threadsafe(self.fail, late)
        return True

    def expire_in(self, delay_s: float) -> None:
        """Fail after `delay_s` if nothing resolves it before, also while the engine hangs; needs a running loop."""
        late = DeadlinePassed("the deadline passed before the answer was there")
        timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), self.fail, late)
        self.future.add_done_callback(lambda _: timer.cancel())

    def fail(self, error: Exception) -> None:
        """Resolve with an error, unless resolved already."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(eq=False)
class Batch:
    """Rows for one run of the engine, all of one input size."""

    buffer: NDArray[np.uint8]  # (max_batch_size, S, S, 3)
    while_busy: bool = False  # its runner had been busy until it took this one
    entries: list[Entry] = field(default_factory=list)
    macs: float = 0.0  # predicted, of all rows
    is_dear: bool = False  # an image found no room because of the work already here

    @property
    def size_px(self) -> int:
        return int(self.buffer.shape[1])

    @property
    def is_full(self) -> bool:
        return len(self.entries) == len(self.buffer)

    @property
    def is_unwanted(self) -> bool:
        """Everybody who waited for it is gone."""
        return all(entry.future.done() for entry in self.entries)

    @property
    def reason(self) -> Reason:
        if self.is_full:
            return "full"
        if self.is_dear:
            return "cost"
        return "busy" if self.while_busy else "idle"

    def admit(self, entry: Entry, affords: Callable[[float], bool]) -> bool:
        """Copy the entry's image into its row; False if it doesn't belong here or makes the run's MACs too many."""
        if self.is_full or entry.image.shape != self.buffer.shape[1:]:
            return False
        if self.entries and not affords(self.macs + entry.macs):
            self.is_dear = True
            return False
        self.buffer[len(self.entries)] = entry.image
        self.entries.append(entry)
        self.macs += entry.macs
        return True

    def drop_dead(self, now_s: float) -> None:
        """Remove dead entries; the last row moves into the gap, so that rows stay contiguous."""
        for row in reversed(range(len(self.entries))):
            if self.entries[row].is_dead(now_s):
                self.macs -= self.entries[row].macs
                self.is_dear = False
                last = self.entries.pop()
                if row < len(self.entries):
                    self.entries[row] = last
                    self.buffer[row] = self.buffer[len(self.entries)]
