"""Speed at equal accuracy: on straight lines between a rival's own best points, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from export.equal_accuracy import compare, frontier, images_s_at, in_words, speeds
from service.budget import Choice

POINTS = [(0.90, 50.0), (0.88, 80.0), (0.85, 60.0), (0.80, 120.0)]


def row(precision: str, accuracy: float | None, images_s: float, **more: Any) -> dict[str, Any]:
    at = {"size_px": 112, "threshold": 0.0, "sure": 0.0, "batch_size": 32} | more
    return {"precision": precision, "accuracy": accuracy, "images_s": images_s} | at


ROWS = [
    row("dense", 0.90, 50),
    row("dense", 0.86, 90, size_px=84),
    row("dense", 0.90, 400, batch_size=64, size_px=84),
    row("merging", 0.88, 60),
    row("merging", None, 70),
    row("float32", 0.90, 48),
    row("float32", 0.89, 64, size_px=84, threshold=0.2),
    row("int8", 0.85, 99, size_px=84, threshold=0.2),
]


def test_points_that_another_beats_are_no_frontier() -> None:
    assert frontier(POINTS) == [(0.80, 120.0), (0.88, 80.0), (0.90, 50.0)]


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.89, 65.0), (0.84, 100.0), (0.90, 50.0), (0.80, 120.0), (0.91, None), (0.79, None)]
)
def test_speed_lies_on_straight_lines_between_the_best_points(accuracy: float, expected: float | None) -> None:
    assert images_s_at(POINTS, accuracy) == pytest.approx(expected)


def test_one_point_is_known_at_its_own_accuracy_alone() -> None:
    assert images_s_at([(0.9, 50.0)], 0.9) == 50
    assert images_s_at([(0.9, 50.0)], 0.89) is None
    assert images_s_at([], 0.9) is None


def test_presets_are_compared_in_the_largest_batches_with_rivals_of_their_precision() -> None:
    rows = [each for each in ROWS if each["batch_size"] == 32]
    assert speeds(rows, "merging") == [
        (0.90, 50),
        (0.88, 60),
    ]  # from the dense model on; the unmeasured one is left out
    balanced, small = compare(rows, {"full": Choice(112, 0.0), "balanced": Choice(84, 0.2)})
    assert balanced["setting"] == "balanced"
    assert (balanced["precision"], balanced["images_s"], balanced["accuracy"]) == ("float32", 64, 0.89)
    assert balanced["rivals"] == {"dense": 60.0, "merging": 55.0}
    assert small["rivals"] == {"dense-int8": None, "openvino": None}
    text = in_words([balanced, small])
    assert "89.00 % (balanced, float32)" in text
    assert "skipvit 64.0, lower resolution 60.0, token merging 55.0" in text
    assert text.endswith("lower resolution, int8 -, lower resolution in OpenVINO -")


def test_two_looks_are_compared_as_well_by_the_presets_name_if_it_is_one() -> None:
    rows = [row("dense", 0.90, 50), row("dense", 0.86, 90, size_px=84), row("float32", 0.86, 92, size_px=84)]
    rows += [row("float32", 0.88, 95, size_px=84, sure=0.5), row("float32", 0.89, 85, size_px=84, sure=0.6)]
    assert speeds(rows, "float32") == [(0.86, 92)]
    assert speeds(rows, "float32", twice=True) == [(0.88, 95), (0.89, 85)]
    other, balanced = compare(rows, {"full": Choice(112, 0.0), "balanced": Choice(84, 0.0, 0.6)})
    assert (other["setting"], other["precision"], other["images_s"]) == ("two looks from 84 px", "float32", 95)
    assert other["rivals"] == {"dense": 70.0, "merging": None}
    assert (balanced["setting"], balanced["images_s"]) == ("balanced", 85)


def test_each_batch_size_is_compared_by_itself_the_largest_first() -> None:
    few = [each | {"batch_size": 1, "images_s": each["images_s"] / 2} for each in ROWS if each["batch_size"] == 32]
    found = compare([*few, *ROWS], {"balanced": Choice(84, 0.2)})
    assert [(each["batch_size"], each["images_s"], each["rivals"]) for each in found] == [
        (32, 64, {"dense": 60.0, "merging": 55.0}),
        (32, 99, {"dense-int8": None, "openvino": None}),
        (1, 32, {"dense": 30.0, "merging": 27.5}),
        (1, 49.5, {"dense-int8": None, "openvino": None}),
    ]
    assert speeds(ROWS, "dense") == [(0.90, 400)]
