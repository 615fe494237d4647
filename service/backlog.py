"""What waits, in the order in which it is due, and the next batch, staged while the engine runs the one before.

The batch that comes next is decided by who is due first: that image's size is the batch's size, and others of this size
join it in the order they are due, until its rows or its predicted work are used up. Images of another size that are due
later are passed over, but never the one that is due first, so nobody waits for ever. It knows no engine, no
clock and no lock: its user has one.
"""

from __future__ import annotations

import math
from asyncio import Future
from bisect import insort
from collections.abc import Callable, Iterator
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from service.batch import Answer, Batch, Entry

_due_s = attrgetter("due_s")


class Backlog:
    """Entries accepted and not yet with the engine."""

    def __init__(self, *, max_batch_size: int, affords: Callable[[float], bool]) -> None:
        self._max_batch_size = max_batch_size
        self._affords = affords
        self._waiting: list[Entry] = []  # what fits no open batch, by due_s
        self._open: Batch | None = None
        self._spare: list[NDArray[np.uint8]] = []
        self._macs: float | None = 0.0  # None: to be summed anew
        self._last_due_s = -math.inf  # of all since then; who is gone may have been the one

    def __len__(self) -> int:
        return len(self._waiting) + (len(self._open.entries) if self._open else 0)

    def __iter__(self) -> Iterator[Entry]:
        if self._open:
            yield from self._open.entries
        yield from self._waiting

    @property
    def macs(self) -> float:
        """Predicted MACs of all that somebody still waits for, and of the second looks that they will bring.

        Every request asks, and the more of them wait the more come: so it isn't summed each time.
        """
        if self._macs is None:
            self._macs = sum(entry.macs + entry.later_macs for entry in self if not entry.future.done())
            self._last_due_s = max(map(_due_s, self), default=-math.inf)
        return self._macs

    def macs_around(self, due_s: float, size_px: int) -> tuple[float, float]:
        """Predicted MACs of what is due by `due_s`, second looks among them, and of later company of the same size."""
        macs = self.macs
        if due_s >= self._last_due_s:  # as it is for whoever has more time than patience
            return macs, 0.0
        ahead = company = 0.0
        for entry in self:
            if entry.future.done():
                continue
            if entry.due_s <= due_s:
                ahead += entry.macs + entry.later_macs
            elif entry.image.shape[0] == size_px:
                company += entry.macs
        return ahead, company

    def add(self, entry: Entry) -> None:
        """Stage the entry in the next batch, or let it wait for a later one."""
        self._place(entry)
        if self._macs is not None:
            self._macs += entry.macs + entry.later_macs
            self._last_due_s = max(self._last_due_s, entry.due_s)
        entry.future.add_done_callback(self._forget_sum)

    def has_dead(self, now_s: float) -> bool:
        """Whether there is anybody to forget."""
        return any(entry.is_dead(now_s) for entry in self)

    def sweep(self, now_s: float) -> None:
        """Forget dead entries and let those who wait have their places."""
        self._macs = None
        if self._open is not None:
            self._open.drop_dead(now_s)
            if not self._open.entries:
                self._close(self._open)
        self._refill([entry for entry in self._waiting if not entry.is_dead(now_s)])

    def take(self, now_s: float) -> Batch | None:
        """The batch that comes next, without dead entries; None if nobody waits. Give it back with `recycle`."""
        self.sweep(now_s)
        if self._open is not None and self._is_overtaken(self._open):
            entries = sorted(self, key=_due_s)
            self._close(self._open)
            self._refill(entries)
        batch, self._open, self._macs = self._open, None, None
        return batch

    def open_next(self) -> None:
        """Stage the next batch from what waits; called once the engine runs."""
        if self._open is None:
            self._refill(self._waiting)

    def recycle(self, batch: Batch) -> None:
        """Take back the buffer of a batch that ran."""
        self._spare.append(batch.buffer)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting, self._open, self._macs = [], None, None

    def _refill(self, entries: list[Entry]) -> None:
        self._waiting = []
        for entry in entries:
            self._place(entry)

    def _place(self, entry: Entry) -> None:
        if self._open is None:
            self._open = self._new_batch(entry.image.shape)
        if not self._open.admit(entry, self._affords):
            insort(self._waiting, entry, key=_due_s)

    def _forget_sum(self, _: Future[Answer]) -> None:
        """One of those who waited is answered, or waits no more."""
        self._macs = None

    def _is_overtaken(self, batch: Batch) -> bool:
        """Whether one who waits is due before someone in the batch whose place it could have had."""
        if not self._waiting:
            return False
        if self._waiting[0].due_s < min(map(_due_s, batch.entries)):
            return True
        rival = next((entry for entry in self._waiting if entry.image.shape == batch.buffer.shape[1:]), None)
        return rival is not None and rival.due_s < max(map(_due_s, batch.entries))

    def _new_batch(self, shape: tuple[int, ...]) -> Batch:
        wanted = (self._max_batch_size, *shape)
        for index, buffer in enumerate(self._spare):
            if buffer.shape == wanted:
                return Batch(self._spare.pop(index))
        return Batch(np.empty(wanted, np.uint8))

    def _close(self, batch: Batch) -> None:
        self._open = None
        self._spare.append(batch.buffer)
