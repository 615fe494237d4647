"""Schedules: sorted, seeded, of the mean that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.arrivals import KINDS, Arrivals, rate_at, schedule, trace

ARRIVALS = st.builds(
    Arrivals,
    kind=st.sampled_from(KINDS),
    rate_rps=st.floats(0.1, 200),
    duration_s=st.floats(0.1, 60),
    burst_ratio=st.floats(1, 50),
    burst_every_s=st.floats(0.1, 20),
    burst_share=st.floats(0.05, 0.95),
    ramp_from=st.floats(0, 2),
)


@settings(deadline=None)
@given(ARRIVALS, st.integers(0, 2**32))
def test_offsets_are_sorted_within_the_run_and_the_seeds_own(arrivals: Arrivals, seed: int) -> None:
    due_s = schedule(arrivals, seed)
    assert (np.diff(due_s) >= 0).all()
    assert ((due_s >= 0) & (due_s < arrivals.duration_s)).all()
    assert np.array_equal(due_s, schedule(arrivals, seed))


@settings(deadline=None)
@given(ARRIVALS)
def test_the_mean_rate_is_what_was_asked(arrivals: Arrivals) -> None:
    expected = arrivals.rate_rps * arrivals.duration_s
    counts = [len(schedule(arrivals, seed)) for seed in range(20)]
    spread = 6 * np.sqrt(expected / len(counts)) + 1  # six standard errors of a Poisson count, and rounding
    assert abs(np.mean(counts) - expected) <= spread


def test_seeds_differ_and_gaps_are_exponential() -> None:
    arrivals = Arrivals("poisson", 100, 200)
    gaps = np.diff(schedule(arrivals, 1))
    assert len(schedule(arrivals, 1)) != len(schedule(arrivals, 2))
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # an exponential's is its mean


def test_constant_is_even() -> None:
    assert schedule(Arrivals("constant", 4, 1), 0).tolist() == [0, 0.25, 0.5, 0.75]


def test_bursts_hold_the_share_they_should() -> None:
    arrivals = Arrivals("burst", 200, 100, burst_ratio=8, burst_every_s=5, burst_share=0.25)
    inside = schedule(arrivals, 0) % 5 / 5 < 0.25
    assert inside.mean() == pytest.approx(0.25 * 8 / (0.25 * 8 + 0.75), abs=0.02)


def test_a_ramp_rises_from_a_fraction_to_its_mirror() -> None:
    arrivals = Arrivals("ramp", 100, 100, ramp_from=0.2)
    assert rate_at(arrivals, np.array([0.0, 50.0, 100.0])) == pytest.approx([20, 100, 180])
    counts = np.histogram(schedule(arrivals, 0), bins=[0, 20, 80, 100])[0]
    assert counts[2] / counts[0] == pytest.approx(164 / 36, rel=0.15)


@pytest.mark.parametrize(
    "change", [{"rate_rps": 0}, {"duration_s": -1}, {"ramp_from": 3}, {"burst_share": 1}, {"burst_ratio": 0.5}]
)
def test_what_has_no_schedule_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|start|need"):
        replace(Arrivals(), **change)  # type: ignore[arg-type]


def test_a_trace_starts_at_its_first_time_and_can_be_replayed_faster(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("time,size\n# noise\n10.5,1\n10,2\n12,3\n")
    assert trace(file).tolist() == [0, 0.5, 2]
    assert trace(file, rate_rps=2).tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("text", ["", "1\n", "1\nx\n", "3\n3\n", "1\nnan\n"])
def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match="trace"):
        trace(file)
