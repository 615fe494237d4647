"""Two looks, worked out by hand from the answers of one."""

from __future__ import annotations

import numpy as np
import pytest

from models.second_look import SURES, in_words, lost_error, second_looks

POINTS = np.array([(64, 0.0), (32, 0.0), (32, 0.5), (64, 0.5)])
RIGHT = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [0] * 4, [0] * 4], np.bool_)
PROBABILITY = np.array([[0.9] * 4, [0.9, 0.5, 0.7, 0.62], [0.0] * 4, [0.0] * 4], np.float32)
MACS = np.array([[1.0] * 4, [0.25] * 4, [0.5] * 4, [0.5] * 4], np.float32)
FULL_PX = 64


def test_the_full_size_answers_where_the_small_one_isnt_sure() -> None:
    rows = {row["sure"]: row for row in second_looks(POINTS, RIGHT, PROBABILITY, MACS, FULL_PX)}
    assert tuple(rows) == SURES
    assert rows[0.4] == {
        "size_px": 32,
        "threshold": 0,
        "sure": 0.4,
        "again_px": 64,
        "looked_again": 0.0,
        "macs_ratio": 0.25,
        "top1": 0.5,
        "lost_error": round(float(np.std([0, 1, 1, -1]) / 2), 5),
    }
    assert (rows[0.6]["looked_again"], rows[0.6]["macs_ratio"], rows[0.6]["top1"]) == (0.25, 0.5, 0.75)
    assert (rows[0.65]["looked_again"], rows[0.65]["macs_ratio"], rows[0.65]["top1"]) == (0.5, 0.75, 0.5)
    assert (rows[0.75]["looked_again"], rows[0.75]["macs_ratio"], rows[0.75]["top1"]) == (0.75, 1.0, 0.75)
    assert rows[0.75]["lost_error"] == 0
    assert "32    64      0.00  0.55       25.0 %" in in_words(list(rows.values()))


def test_a_second_look_may_be_at_any_larger_size_and_with_patches_skipped_if_that_pays() -> None:
    points = np.array([(64, 0.0), (32, 0.0), (96, 0.0), (32, 0.5), (96, 0.5)])
    right = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], np.bool_)
    probability = np.full((5, 4), 0.5, np.float32)
    macs = np.array([[1.0], [0.25], [1.5], [0.2], [1.2]], np.float32) * np.ones((1, 4), np.float32)
    rows = second_looks(points, right, probability, macs, FULL_PX)
    plain = {(row["size_px"], row["again_px"]) for row in rows if row["threshold"] == 0}
    assert plain == {(32, 64), (32, 96), (64, 96)}
    assert len([row for row in rows if row["threshold"] == 0]) == 3 * len(SURES)
    skipping = [row for row in rows if row["threshold"] > 0]
    assert {(row["size_px"], row["again_px"], row["top1"]) for row in skipping} == {(32, 96, 1.0), (32, 96, 0.0)}
    twice = next(row for row in skipping if row["top1"] == 1)
    assert (twice["macs_ratio"], twice["looked_again"]) == (1.4, 1.0)


def test_without_the_full_size_at_threshold_0_there_is_nothing_to_look_at_again() -> None:
    assert second_looks(POINTS[1:], RIGHT[1:], PROBABILITY[1:], MACS[1:], FULL_PX) == []


def test_the_error_of_a_difference_is_that_of_the_images_where_they_differ() -> None:
    right = np.zeros(10_000, np.bool_)
    full = right.copy()
    assert lost_error(right, full) == 0
    full[:100] = True  # 1 % lost
    assert lost_error(right, full) == pytest.approx(np.sqrt(0.01 * 0.99 / 10_000))
