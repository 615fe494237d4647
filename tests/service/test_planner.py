from __future__ import annotations

from typing import Any

import pytest

from service.budget import Choice
from service.controller import Controller
from service.errors import DeadlinePassed, Overloaded
from service.planner import Plan, Planner
from tests.fakes import FakeClock, fake_manifest

FULL, BALANCED = Choice(28, 0.0), Choice(28, 0.5)
MACS_RATIO = {(28, 0.0): 1.0, (28, 0.5): 0.6, (14, 0.0): 0.4, (14, 0.5): 0.2}


class FakeQueue:
    """A queue whose work is set; an image takes a second for the whole dense MACs."""

    def __init__(self, waiting_s: float = 0.0) -> None:
        self.wait_s = waiting_s

    def run_s(self, size_px: int, threshold: float, images: int) -> float:
        known = MACS_RATIO.get((size_px, threshold))
        ratio = known if known is not None else (1.0 - 0.8 * threshold if size_px == 28 else 0.4 - 0.4 * threshold)
        return images * ratio

    def finish_s(self, size_px: int, threshold: float, images: int, deadline: float) -> float:
        return self.wait_s + self.run_s(size_px, threshold, images)


def planner(queue: FakeQueue, *, level: float = 0.0, **min_compute: float) -> Planner:
    controller, clock = Controller(target_s=0.2), FakeClock()
    controller._integral = level
    minimum: Any = {"full": 0.5, "balanced": 0.2, "economy": 0.2, **min_compute}
    return Planner(fake_manifest(), queue, controller, min_compute=minimum, clock=clock)


def plan(planner: Planner, wanted: Choice, **options: Any) -> Plan:
    given = {"bound": "balanced", "by_load": True, "by_deadline": False, "deadline": 1030.0, **options}
    return planner.plan(wanted, **given)


def test_without_load_a_request_gets_what_it_asked_for() -> None:
    assert plan(planner(FakeQueue()), FULL) == Plan(FULL, degraded=False)


def test_load_lowers_spending_along_the_table_and_says_so() -> None:
    found = plan(planner(FakeQueue(0.15), level=1.0), BALANCED)
    assert found == Plan(Choice(14, 0.5), degraded=True)
    half = plan(planner(FakeQueue(0.15), level=0.5), BALANCED)
    assert half == Plan(Choice(14, 0.0), degraded=True)


def test_two_images_at_full_compute_are_no_queue() -> None:
    queue = FakeQueue(1.9)  # of images that take a second each
    waits, clock = planner(queue), FakeClock()
    waits._clock = clock
    for _ in range(100):
        clock.advance(0.1)
        assert waits.level == 0
    queue.wait_s = 6.0
    for _ in range(100):
        clock.advance(0.1)
        last = waits.level
    assert last == 1


def test_each_preset_has_a_minimum_of_its_own() -> None:
    overloaded = planner(FakeQueue(0.15), level=1.0)
    assert plan(overloaded, FULL, bound="full").choice == Choice(14, 0.0)  # 0.4 of the MACs, 0.5 is the minimum
    assert plan(planner(FakeQueue(0.15), level=1.0, full=1.0), FULL, bound="full") == Plan(FULL, degraded=False)


def test_who_opted_out_is_never_lowered() -> None:
    assert plan(planner(FakeQueue(0.15), level=1.0), FULL, by_load=False) == Plan(FULL, degraded=False)


def test_images_that_come_at_a_size_keep_it() -> None:
    assert plan(planner(FakeQueue(0.15), level=1.0), BALANCED, size_px=28).choice == Choice(28, 1.0)


def test_a_deadline_that_can_be_met_changes_nothing() -> None:
    assert plan(planner(FakeQueue(3.0)), FULL, by_load=False, deadline=1004.1) == Plan(FULL, degraded=False)


def test_a_deadline_that_the_queue_defeats_is_refused_with_the_time_to_come_back() -> None:
    with pytest.raises(Overloaded, match="degrade=true") as caught:
        plan(planner(FakeQueue(3.0)), FULL, by_load=False, deadline=1002.0)
    assert caught.value.retry_after_s == pytest.approx(2.0)


def test_a_deadline_too_short_for_an_idle_engine_is_refused_as_such() -> None:
    with pytest.raises(DeadlinePassed, match="leaves 100 ms; inference alone takes about 1000 ms"):
        plan(planner(FakeQueue()), FULL, deadline=1000.1)


def test_who_allows_it_is_lowered_just_enough_for_the_deadline() -> None:
    found = plan(planner(FakeQueue(0.3)), FULL, deadline=1001.0, by_deadline=True)
    assert found.degraded
    assert 0.5 < 1.0 - 0.8 * found.choice.threshold <= 0.7  # 0.7 s are left, at a second for the whole


def test_even_the_minimum_may_not_make_it() -> None:
    with pytest.raises(
        DeadlinePassed, match="the least that it may be lowered to too long as well: allow more time$"
    ) as caught:
        plan(planner(FakeQueue()), FULL, deadline=1000.05, by_deadline=True)
    assert "degrade" not in str(caught.value)
    with pytest.raises(DeadlinePassed, match="leaves 0 ms"):
        plan(planner(FakeQueue()), FULL, deadline=999.0)
    unknown = FakeQueue()
    unknown.run_s = lambda *_: 0.0  # type: ignore[method-assign]
    with pytest.raises(DeadlinePassed, match="leaves 0 ms"):
        plan(planner(unknown), FULL, deadline=999.0)
    with pytest.raises(Overloaded, match="try again later$"):
        plan(planner(FakeQueue(3.0)), FULL, deadline=1002.0, by_deadline=True)


def test_load_asks_how_many_are_looked_at_again_of_late() -> None:
    controller, ratios = Controller(target_s=0.2), [1.0, 9.0]
    controller._integral = 0.9
    look = {"size_px": 14, "again_px": 28, "sure": 0.7, "looked_again": 0.2, "macs_ratio": 0.6, "accuracy": 0.99}
    planner = Planner(
        fake_manifest(second_looks=[look]),
        FakeQueue(),
        controller,
        min_compute={"full": 0.6},
        looks_ratio=lambda: ratios.pop(0),
        clock=FakeClock(),
    )
    lowered = [plan(planner, FULL, bound="full").choice for _ in range(2)]
    assert [choice.sure > 0 for choice in lowered] == [True, False]


def test_without_a_table_nothing_can_be_lowered() -> None:
    controller = Controller(target_s=0.2)
    controller._integral = 1.0
    manifest = fake_manifest(calibration=[])
    bare = Planner(manifest, FakeQueue(0.15), controller, min_compute={"balanced": 0.0}, clock=FakeClock())
    assert plan(bare, BALANCED) == Plan(BALANCED, degraded=False)
