"""Summaries against numpy and against a calculation by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.records import OUTCOMES, Records, build, concatenate, from_json
from loadtest.summary import MAX_LAG_RATIO, accuracy, percentiles, summarise, wilson


def records(latency_s: list[float], outcomes: list[str] | None = None, **columns: list[float]) -> Records:
    names = outcomes or ["ok"] * len(latency_s)
    rows: list[dict[str, float]] = [
        {
            "due_s": index * 0.1,
            "lag_s": 0.0,
            "latency_s": value,
            "outcome": OUTCOMES.index(name),
            "image": index,
            "point": 0,
            "top1": 1.0,
            "top5": 1.0,
            "degraded": 0.0,
        }
        | {column: values[index] for column, values in columns.items()}
        for index, (value, name) in enumerate(zip(latency_s, names, strict=True))
    ]
    return build(rows, Counter(), {})


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 60), min_size=1, max_size=300))
def test_percentiles_are_numpys(values: list[float]) -> None:
    found = percentiles(np.array(values))
    for name, share in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("max", 100)):
        assert found[name] == pytest.approx(np.percentile(values, share), rel=1e-4)
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-4)


def test_wilson_is_the_published_interval() -> None:
    assert wilson(0.9, 500) == pytest.approx((0.8706, 0.9233), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 0) == (0.0, 1.0)


def test_asking_for_an_image_again_tells_nothing_new() -> None:
    once = accuracy(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    often = accuracy(np.array([1.0, 0.0] * 50), np.array([0.0, 1.0] * 50))
    assert once == often


def test_goodput_counts_what_was_refused_or_slow_as_missed() -> None:
    run = records([0.1, 0.2, 0.9, 0.01], ["ok", "ok", "ok", "refused"], top1=[1, 0, 1, np.nan])
    found = summarise(run, 2.0, 0.25, ["threshold=0"])
    assert found["goodput_ratio"] == 0.5
    assert found["goodput_rps"] == 1.0
    assert found["throughput_rps"] == 1.5
    assert found["refused_ratio"] == 0.25
    assert found["latency_s"]["max"] == 0.9
    assert found["top1"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["healthy"]


def test_throughput_counts_the_time_until_the_last_answer() -> None:
    assert summarise(records([4.0]), 1.0, 1, ["threshold=0"])["throughput_rps"] == 0.25


@pytest.mark.parametrize("outcome", OUTCOMES[4:])
def test_what_no_healthy_service_answers_is_said(outcome: str) -> None:
    assert not summarise(records([0.1, 0.1], ["ok", outcome]), 1, 1, ["threshold=0"])["healthy"]


def test_a_late_generator_makes_a_run_invalid() -> None:
    fine = summarise(records([0.1] * 10, lag_s=[0.1 * MAX_LAG_RATIO] * 10), 1, 1, ["threshold=0"])
    late = summarise(records([0.1] * 10, lag_s=[0.1 * MAX_LAG_RATIO * 1.1] * 10), 1, 1, ["threshold=0"])
    assert fine["lag"]["valid"]
    assert not late["lag"]["valid"]
    assert not summarise(records([0.1], ["refused"]), 1, 1, ["threshold=0"])["lag"]["valid"]


def test_phases_stand_beside_the_callers_time() -> None:
    phase: dict[str, list[float]] = {"decode_s": [0.01], "queue_s": [0.02], "inference_s": [0.03], "total_s": [0.07]}
    found = summarise(records([0.1], None, **phase), 1, 1, ["threshold=0"])["phases"]
    assert found["outside"]["p50"] == pytest.approx(0.03)
    assert found["overhead"]["p50"] == pytest.approx(0.05)
    assert found["overhead_ratio"] == pytest.approx(0.5)
    assert summarise(records([0.1]), 1, 1, ["threshold=0"])["phases"] is None


def test_the_timeline_puts_requests_where_they_were_due() -> None:
    run = records([0.1, 0.3, 0.2], ["ok", "ok", "refused"], due_s=[0.0, 5.0, 9.9], degraded=[0, 1, np.nan])
    bins = summarise(run, 10.0, 1, ["threshold=0"])["timeline"]
    assert bins[0]["p50"] == 0.1
    assert bins[12]["degraded_ratio"] == 1
    assert bins[-1]["unanswered_ratio"] == 1
    assert bins[1]["unanswered_ratio"] is None


def test_records_survive_their_file_and_parts_make_the_whole() -> None:
    run = records([0.1, 0.2, 0.3, 0.4], ["ok", "late", "ok", "ok"], top1=[1, np.nan, 0, 1])
    again = from_json(run.to_json())
    parts = [run.where(np.arange(4) % 2 == index) for index in range(2)]
    joined = concatenate(parts)
    for name in run.columns:
        np.testing.assert_allclose(again[name], run[name], atol=1e-6)
        np.testing.assert_array_equal(joined[name], run[name])
    with pytest.raises(ValueError, match="records"):
        from_json({"columns": {}})
