"""The controller against a simulated queue: held at its target under any load it can hold, and calm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from service.controller import Controller
from service.settings import Settings

TARGET_S, WANTED, MINIMUM = 0.2, 0.7, 0.26
BATCH_S = 0.3  # the queue is seen to shrink only when a batch ends


def simulate(
    load: Callable[[float], float], *, until_s: float, controller: Controller | None = None, step_s: float = 0.01
) -> list[tuple[float, float, float]]:
    """(time, delay, level) for an offered load in engines at full spending; the engine finishes a second a second."""
    controller = controller or Controller(target_s=TARGET_S)
    waiting_s = done_s = 0.0
    trace = []
    for step in range(round(until_s / step_s)):
        now_s = step * step_s
        controller.observe(now_s, waiting_s)
        waiting_s += step_s * load(now_s) * controller.share(WANTED, MINIMUM) / WANTED
        done_s += step_s
        if done_s >= min(BATCH_S, waiting_s):  # a batch ends, or the engine has nothing to do
            waiting_s, done_s = max(0.0, waiting_s - done_s), 0.0
        trace.append((now_s, waiting_s, controller.level))
    return trace


@pytest.mark.parametrize("load", [0.6, 1.2, 2.0])
def test_the_default_target_is_held_with_the_batches_that_form_at_it(
    load: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.service.test_controller.BATCH_S", 0.1)
    target_s = Settings().adaptive_target_s
    delays, levels = after(simulate(lambda now: load, until_s=60, controller=Controller(target_s=target_s)), 30)
    needed = max(0.0, 1 - 1 / load) * WANTED / (WANTED - MINIMUM)
    assert sum(levels) / len(levels) == pytest.approx(needed, abs=0.08)
    assert max(delays) < target_s + 2 * BATCH_S
    assert max(levels) - min(levels) <= 0.25


def test_a_target_shorter_than_images_take_is_none() -> None:
    short, long = Controller(target_s=0.01), Controller(target_s=0.5)
    for now in range(100):
        short.observe(now * 0.1, 0.4 + 0.3 * (now % 2), least_target_s=0.5)
        long.observe(now * 0.1, 0.4 + 0.3 * (now % 2))
    assert short.level == long.level
    for now in range(100, 200):
        short.observe(now * 0.1, 0.4)
    assert short.level == 1


def after(trace: list[tuple[float, float, float]], start_s: float) -> tuple[list[float], list[float]]:
    return [d for t, d, _ in trace if t >= start_s], [level for t, _, level in trace if t >= start_s]


def test_below_capacity_nothing_is_lowered() -> None:
    _, levels = after(simulate(lambda now: 0.6, until_s=30), 0)
    assert max(levels) == 0


@pytest.mark.parametrize("load", [1.2, 1.6, 2.0, 2.5])
def test_a_step_above_capacity_is_held_near_the_target(load: float) -> None:
    delays, levels = after(simulate(lambda now: load if now > 1 else 0.3, until_s=60), 30)
    needed = (1 - 1 / load) * WANTED / (WANTED - MINIMUM)  # the level at which offered work equals the engine's
    assert sum(levels) / len(levels) == pytest.approx(needed, abs=0.08)
    assert max(delays) < TARGET_S + 1.5 * BATCH_S


@pytest.mark.parametrize("load", [1.2, 2.0])
def test_it_has_no_oscillation_of_its_own(load: float) -> None:
    """What is needed lies between two steps, so it goes to and fro between these two, slowly, and no further."""
    _, levels = after(simulate(lambda now: load, until_s=80), 40)
    assert max(levels) - min(levels) <= 0.25
    changes = sum(before != level for before, level in pairwise(levels))
    assert changes <= 40 / 2


def test_a_ramp_up_and_down_ends_where_it_began() -> None:
    trace = simulate(lambda now: 0.2 + 2.0 * max(0.0, 1 - abs(now - 30) / 30), until_s=90)
    _, at_top = after(trace, 29)
    assert at_top[0] > 0.5
    _, at_end = after(trace, 75)
    assert max(at_end) == 0


@pytest.mark.parametrize("period_s", [0.5, 2.0, 10.0])
def test_a_load_that_oscillates_isnt_amplified(period_s: float) -> None:
    def load(now_s: float) -> float:
        return 1.6 if now_s % period_s < period_s / 2 else 0.6

    delays, levels = after(simulate(load, until_s=80), 40)
    alone, _ = after(simulate(load, until_s=80, controller=Controller(target_s=TARGET_S, enabled=False)), 40)
    assert max(delays) <= max(alone)
    assert max(levels) < 1


def test_more_than_the_minimum_can_hold_stays_at_full_level() -> None:
    _, levels = after(simulate(lambda now: 5.0, until_s=30), 20)
    assert min(levels) == 1


def test_it_lets_go_within_seconds() -> None:
    trace = simulate(lambda now: 2.5 if now < 20 else 0.2, until_s=40)
    _, levels = after(trace, 26)
    assert max(levels) == 0


def test_between_half_the_target_and_the_target_nothing_changes() -> None:
    controller = Controller(target_s=TARGET_S)
    for now in range(40):
        controller.observe(now * 0.1, 2 * TARGET_S)
    for now in range(20):  # until the smoothed delay is there, too
        controller.observe(4.0 + now * 0.1, 0.75 * TARGET_S)
    level = controller.level
    for now in range(100):
        controller.observe(6.0 + now, 0.75 * TARGET_S)
    assert controller.level == level > 0


def test_a_pause_under_load_isnt_counted_as_load() -> None:
    controller = Controller(target_s=TARGET_S)
    controller.observe(0.0, 2 * TARGET_S)
    controller.observe(1000.0, 2 * TARGET_S)
    assert controller.level < 0.3


def test_switched_off_it_never_lowers() -> None:
    _, levels = after(simulate(lambda now: 3.0, until_s=10, controller=Controller(target_s=0.2, enabled=False)), 0)
    assert max(levels) == 0


def test_the_guard_bounds_the_level_and_lets_go_slowly() -> None:
    controller = Controller(target_s=TARGET_S)
    controller.judge(agreement_is_fine=False)
    controller.judge(agreement_is_fine=False)
    for now in range(1000):
        controller.observe(now * 0.1, 100.0)
    assert controller.ceiling == pytest.approx(0.6)
    assert 0.4 < controller.level <= controller.ceiling
    for _ in range(100):
        controller.judge(agreement_is_fine=True)
    assert controller.ceiling == 1


def test_whatever_the_guard_says_a_little_is_lowered_or_it_would_have_nothing_to_judge() -> None:
    controller = Controller(target_s=TARGET_S)
    for now in range(1000):
        controller.judge(agreement_is_fine=False)
        controller.observe(now * 0.1, 100.0)
    assert 0 < controller.level <= 0.1
    assert controller.share(1.0, 0.5) < 1.0


def test_spending_goes_from_the_wish_to_the_minimum_and_never_up() -> None:
    controller = Controller(target_s=TARGET_S)
    assert controller.share(0.7, 0.26) == 0.7
    for now in range(1000):
        controller.observe(now * 0.1, 100.0)
    assert controller.share(0.7, 0.26) == pytest.approx(0.26)
    assert controller.share(0.2, 0.26) == 0.2
