"""Any order of arrivals, cancellations, deadlines and departures: who is due first goes first, within all bounds."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.backlog import Backlog
from service.batch import PATIENCE_S, Answer, Entry

MAX_ROWS, MAX_MACS = 4, 10.0
SIZES = (14, 28)


class BacklogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backlog = Backlog(max_batch_size=MAX_ROWS, affords=lambda macs: macs <= MAX_MACS)
        self.now_s = 0.0
        self.arrived = 0
        self.waiting: list[Entry] = []

    def teardown(self) -> None:
        for _ in range(len(self.waiting) + 1):
            self.leave()
        assert not [entry for entry in self.waiting if not entry.future.done()], "somebody was forgotten"
        self.loop.close()

    @rule(
        size_px=st.sampled_from(SIZES),
        macs=st.sampled_from([0.5, 3.0, 6.0, 12.0]),
        deadline_in_s=st.sampled_from([None, 0.0, 0.3, 2.0, 30.0]),
    )
    def arrive(self, size_px: int, macs: float, deadline_in_s: float | None) -> None:
        self.arrived += 1
        image = np.full((size_px, size_px, 3), self.arrived % 256, np.uint8)
        deadline = None if deadline_in_s is None else self.now_s + deadline_in_s
        future: asyncio.Future[Answer] = self.loop.create_future()
        entry = Entry(image, 0.5, deadline, self.now_s, macs, future)
        self.backlog.add(entry)
        self.waiting.append(entry)

    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        if self.waiting:
            self.waiting[which % len(self.waiting)].future.cancel()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.5]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def sweep(self) -> None:
        self.backlog.sweep(self.now_s)
        self.retrieve_errors()

    @rule()
    def stage(self) -> None:
        self.backlog.open_next()

    @rule()
    def leave(self) -> None:
        batch = self.backlog.take(self.now_s)
        self.retrieve_errors()
        self.waiting = [entry for entry in self.waiting if not entry.future.done()]
        if batch is None:
            assert not self.waiting
            return
        entries = batch.entries
        left = [entry for entry in self.waiting if entry not in entries]
        assert 0 < len(entries) <= MAX_ROWS
        assert all(entry in self.waiting for entry in entries), "an entry left dead or twice"
        assert {entry.image.shape[0] for entry in entries} == {batch.size_px}
        assert batch.macs == sum(entry.macs for entry in entries)
        assert batch.macs <= MAX_MACS or len(entries) == 1
        assert all((batch.buffer[row] == entry.image).all() for row, entry in enumerate(entries))
        assert min(entry.due_s for entry in entries) == min(entry.due_s for entry in self.waiting)
        for entry in left:  # passed over only for its size, for want of room, or because it is due later
            if entry.image.shape[0] == batch.size_px and entry.due_s < max(one.due_s for one in entries):
                before = sum(one.macs for one in entries if one.due_s <= entry.due_s)
                assert before + entry.macs > MAX_MACS
        self.waiting = left
        self.backlog.recycle(batch)

    def retrieve_errors(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))  # who is late is told with the loop's next turn
        for entry in self.waiting:
            if entry.future.done() and not entry.future.cancelled():
                entry.future.exception()

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        inside = list(self.backlog)
        assert len(inside) == len(set(map(id, inside))) == len(self.backlog)
        assert {id(entry) for entry in self.waiting if not entry.future.done()} <= set(map(id, inside))

    @invariant()
    def the_sum_is_of_all_who_are_waited_for(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))  # futures tell who listens with the loop's next turn
        waited_for = sum(entry.macs for entry in self.waiting if not entry.future.done())
        assert self.backlog.macs == waited_for
        assert self.backlog.macs_around(self.now_s + PATIENCE_S, 28) == (waited_for, 0.0)


BacklogMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBacklog = BacklogMachine.TestCase


def test_patience_bounds_how_long_a_sooner_deadline_may_go_first() -> None:
    loop = asyncio.new_event_loop()
    image = np.zeros((14, 14, 3), np.uint8)
    patient = Entry(image, 0.5, 30.0, 0.0, 1.0, loop.create_future())
    urgent = Entry(image, 0.5, PATIENCE_S / 2 + 0.1, PATIENCE_S / 2, 1.0, loop.create_future())
    too_late = Entry(image, 0.5, PATIENCE_S + 0.2, PATIENCE_S + 0.1, 1.0, loop.create_future())
    assert urgent.due_s < patient.due_s < too_late.due_s
    loop.close()
