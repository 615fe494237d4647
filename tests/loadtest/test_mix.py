"""What requests are like: weights, operating points, draws, shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.mix import Mix, draw, parse_shard, point, weighted

MIX = Mix(points=weighted("threshold=0:3,preset=economy:1", point), cancel_ratio=0.25)


@pytest.mark.parametrize(
    ("text", "plainest"),
    [
        ("threshold=.40", "threshold=0.4"),
        ("threshold=0.25&size=84", "size=84&threshold=0.25"),
        ("sure=.50&size=70", "size=70&sure=0.5"),
        ("preset=full", "preset=full"),
    ],
)
def test_a_point_has_one_form(text: str, plainest: str) -> None:
    assert point(text) == plainest


@pytest.mark.parametrize("text", ["", "0.4", "threshold=", "colour=red", "threshold=a"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"operating point|could not convert"):
        point(text)


def test_weights_become_shares() -> None:
    assert weighted("a:3,b", str) == (("a", 0.75), ("b", 0.25))
    for bad in ("a:0", "a:-1,b:2", "a:x"):
        with pytest.raises(ValueError, match=r"weights|could not convert"):
            weighted(bad, str)


def test_shares_and_images_come_as_often_as_asked() -> None:
    plan = draw(MIX, images=50, requests=10_000, seed=3)
    assert (plan.point == 1).mean() == pytest.approx(0.25, abs=0.02)
    assert plan.cancel.mean() == pytest.approx(0.25, abs=0.02)
    counts = np.bincount(draw(MIX, images=50, requests=125, seed=3).image)
    assert set(counts.tolist()) == {2, 3}  # shuffled rounds, not a lottery


def test_another_mix_sends_the_same_images() -> None:
    one, other = draw(MIX, 50, 200, seed=7), draw(Mix(), 50, 200, seed=7)
    assert np.array_equal(one.image, other.image)
    assert not np.array_equal(one.image, draw(MIX, 50, 200, seed=8).image)


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(0, 60))
def test_shards_are_the_whole_plan(workers: int, requests: int) -> None:
    plan = draw(MIX, 10, requests, seed=0, due_s=np.arange(requests, dtype=np.float64))
    parts = [plan.shard(index, workers) for index in range(workers)]
    for column in range(7):
        joined = np.concatenate([np.asarray(part[column]) for part in parts])
        assert sorted(joined.tolist()) == sorted(np.asarray(plan[column]).tolist())
    assert sum(len(part) for part in parts) == requests


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "a/b"])
def test_a_shard_is_below_its_count(text: str) -> None:
    with pytest.raises(ValueError, match="shard"):
        parse_shard(text)
    assert parse_shard("3/4") == (3, 4)
