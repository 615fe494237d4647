"""The autoscaler's numbers, played against pods that answer as recorded ones did: soon, enough, without flapping."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.k8s.hpa import START_S, SYNC_S, Autoscaler, Moment, Recording, simulate, turns
from tests.k8s.rendered import one, settings

HOUR_S = 3600
SHED_S = float(settings("overlays/cpu")["SKIPVIT_MAX_PENDING_WORK_S"])
RECORDING = Recording(Path(__file__).with_name("recorded_load.csv"), shed_s=SHED_S)


def spec() -> dict[str, Any]:
    found: dict[str, Any] = one("autoscaling/hpa", "HorizontalPodAutoscaler")["spec"]
    return found


def target(name: str) -> float:
    return next(
        float(item["pods"]["target"]["averageValue"])
        for item in spec()["metrics"]
        if item["pods"]["metric"]["name"] == name
    )


SCALE_S, BUSY_RATIO = target("skipvit_pending_work_seconds"), target("skipvit_engine_busy_ratio")
POD_RPS = RECORDING.rate_at(BUSY_RATIO)  # what a pod answers comfortably


def after(moments: list[Moment], time_s: int) -> list[Moment]:
    return [moment for moment in moments if moment.time_s >= time_s]


def test_the_recording_spans_idle_to_overload() -> None:
    assert RECORDING.at(RECORDING.rates_rps[0])[0] < SCALE_S / 2
    assert RECORDING.at(RECORDING.rates_rps[0])[1] < BUSY_RATIO / 2
    assert RECORDING.at(RECORDING.rates_rps[-1])[0] > SCALE_S
    assert RECORDING.at(RECORDING.rates_rps[-1])[1] > BUSY_RATIO


@pytest.mark.parametrize("pods_worth", [1, 2, 3.5, 6, 8])
def test_a_jump_is_met_within_minutes_and_then_nothing_moves(pods_worth: float) -> None:
    moments = simulate(spec(), RECORDING, lambda now_s: POD_RPS * (0.5 if now_s < 300 else pods_worth), HOUR_S, pods=2)
    met = next(moment for moment in after(moments, 300) if moment.pods >= math.ceil(pods_worth * 0.9))
    assert met.time_s - 300 <= 4 * 60
    for moment in after(moments, 300 + 10 * 60):
        assert moment.pending_s < SCALE_S
        assert math.floor(pods_worth * 0.9) <= moment.pods <= max(2, math.ceil(pods_worth * 1.3) + 1)
    assert turns(moments) <= 1  # up, and once down from what a minute's mean had overshot


def test_a_day_is_followed_up_and_down_once() -> None:
    def day(now_s: int) -> float:
        return POD_RPS * (4 - 3 * math.cos(2 * math.pi * now_s / (24 * HOUR_S)))

    moments = simulate(spec(), RECORDING, day, 24 * HOUR_S, pods=2)
    assert turns(moments) <= 3
    assert max(moment.pods for moment in moments) >= 7
    assert moments[-1].pods <= 3
    assert all(moment.pending_s < SCALE_S for moment in moments)


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_load_doesnt_flap(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(1, 0.1, 2 * HOUR_S // SYNC_S)
    moments = simulate(spec(), RECORDING, lambda now_s: POD_RPS * 4 * noise[now_s // SYNC_S], 2 * HOUR_S, pods=4)
    settled = after(moments, HOUR_S // 2)
    assert max(moment.pods for moment in settled) - min(moment.pods for moment in settled) <= 2


def test_a_burst_is_degraded_and_buys_no_pods() -> None:
    """30 s of three times the load."""
    moments = simulate(spec(), RECORDING, lambda now_s: POD_RPS * (6 if 600 <= now_s < 630 else 2), HOUR_S, pods=3)
    assert max(moment.pods for moment in moments) <= 4


def test_queued_work_alone_would_flap() -> None:
    """Why there are two metrics."""
    alone = spec()
    alone["metrics"] = [item for item in alone["metrics"] if "pending" in item["pods"]["metric"]["name"]]
    runs = [simulate(each, RECORDING, lambda _: POD_RPS * 6, 4 * HOUR_S, pods=6) for each in (alone, spec())]
    assert turns(runs[0]) > 6 > turns(runs[1])


def test_refusals_begin_far_above_where_pods_are_added() -> None:
    assert Autoscaler(spec()).decide(0, 4, [SHED_S, 1.0]) == 6  # as fast as the policy allows
    assert START_S < 60


@pytest.mark.parametrize(
    ("pods", "measured", "wanted"),
    [
        (4, [0.0, 0.7], 4),
        (4, [0.0, 0.76], 4),  # within the tolerance
        (4, [0.0, 0.8], 5),
        (4, [0.6, 0.1], 6),  # the larger answer wins
        (4, [2.0, 1.0], 6),  # no more than half as many again
        (2, [2.0, 1.0], 4),  # or two
        (9, [2.0, 1.0], 10),  # the maximum
        (4, [0.0, 0.0], 3),  # one at a time
        (2, [0.0, 0.0], 2),  # the minimum
    ],
)
def test_one_decision(pods: int, measured: list[float], wanted: int) -> None:
    assert Autoscaler(spec()).decide(0, pods, measured) == wanted


def test_pods_go_only_after_five_minutes_and_one_a_minute() -> None:
    autoscaler = Autoscaler(spec())
    pods, seen = 6, []
    for now_s in range(0, 600, SYNC_S):
        pods = autoscaler.decide(now_s, pods, [0.1, 0.7] if now_s == 0 else [0.0, 0.1])
        seen.append((now_s, pods))
    first = next(now_s for now_s, count in seen if count == 5)
    second = next(now_s for now_s, count in seen if count == 4)
    assert first > 300
    assert second - first >= 60
