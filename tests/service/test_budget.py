from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.artifact import Manifest
from service.budget import Choice, cheaper, choose, expected, solve, timed
from service.errors import BadParameter
from tests.fakes import fake_manifest

MANIFEST = fake_manifest()


def test_a_threshold_runs_at_the_full_size_or_at_the_one_named() -> None:
    assert choose(MANIFEST, threshold=0.3) == Choice(28, 0.3)
    assert choose(MANIFEST, threshold=0.3, size_px=14) == Choice(14, 0.3)


def test_a_preset_is_a_pair_by_name() -> None:
    assert choose(MANIFEST, preset="economy") == Choice(14, 0.5)


def test_nothing_given_is_the_default_preset_and_a_size_keeps_its_threshold() -> None:
    assert choose(MANIFEST) == Choice(28, 0.5)
    assert choose(MANIFEST, default_preset="full") == Choice(28, 0.0)
    assert choose(MANIFEST, size_px=14) == Choice(14, 0.5)


@pytest.mark.parametrize(
    "parameters",
    [
        {"threshold": 0.1, "compute": 0.5},
        {"threshold": 0.1, "preset": "full"},
        {"compute": 0.1, "preset": "full"},
        {"threshold": 0.0, "compute": 0.0, "preset": "full"},
        {"preset": "full", "size_px": 14},
    ],
)
def test_parameters_that_exclude_each_other_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadParameter, match="exclude each other"):
        choose(MANIFEST, **parameters)


def test_a_size_the_bundle_doesnt_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(BadParameter, match="size: 99 is not one of 28, 14"):
        choose(MANIFEST, size_px=99, threshold=0.0)


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (1.0, Choice(28, 0.0)),
        (0.8, Choice(28, 0.25)),  # halfway between 1.0 and 0.6
        (0.6, Choice(28, 0.5)),
        (0.4, Choice(14, 0.0)),  # the small model beats the large one at this price
        (0.3, Choice(14, 0.25)),
        (0.2, Choice(14, 0.5)),
        (0.0, Choice(14, 0.5)),  # nothing is that cheap: the cheapest
    ],
)
def test_compute_finds_the_best_pair(compute: float, expected: Choice) -> None:
    found = solve(MANIFEST, compute)
    assert found.size_px == expected.size_px
    assert found.threshold == pytest.approx(expected.threshold)


def test_a_size_restricts_the_search() -> None:
    assert solve(MANIFEST, 0.3, size_px=28) == Choice(28, 1.0)
    assert solve(MANIFEST, 1.0, size_px=14) == Choice(14, 0.0)


def test_of_equally_accurate_pairs_the_dearer_is_taken() -> None:
    points = [point.model_copy(update={"accuracy": 0.5}) for point in MANIFEST.calibration]
    manifest = fake_manifest(calibration=[point.model_dump() for point in points])
    assert solve(manifest, 1.0) == Choice(28, 0.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_compute_is_never_less_accurate(first: float, second: float) -> None:
    lower, upper = sorted((first, second))
    assert accuracy(solve(MANIFEST, lower)) <= accuracy(solve(MANIFEST, upper)) + 1e-9


def accuracy(choice: Choice) -> float:
    points = [point for point in MANIFEST.calibration if point.size_px == choice.size_px]
    points.sort(key=lambda point: point.threshold)
    for low, high in zip(points, points[1:], strict=False):
        if low.threshold <= choice.threshold <= high.threshold:
            share = (choice.threshold - low.threshold) / (high.threshold - low.threshold)
            return low.accuracy + share * (high.accuracy - low.accuracy)
    raise AssertionError(f"{choice} lies outside the table")


def test_where_skipping_was_measured_to_help_that_is_noise_and_the_dearer_is_taken() -> None:
    points = [(0.0, 1.0, 0.90), (0.25, 0.8, 0.894), (0.5, 0.6, 0.90), (1.0, 0.2, 0.5)]  # the second by bad luck
    row = MANIFEST.calibration[0].model_dump()

    def at(threshold: float, macs: float, accuracy: float) -> dict[str, Any]:
        ratio = row["macs_ratio"] | {"mean": macs}
        return row | {"size_px": 28, "threshold": threshold, "macs_ratio": ratio, "accuracy": accuracy}

    manifest = fake_manifest(calibration=[at(*point) for point in points])
    assert solve(manifest, 1.0) == Choice(28, 0.0)
    assert solve(manifest, 0.8) == Choice(28, 0.25)  # and not 0.5, which is no better
    assert solve(manifest, 0.9).threshold == pytest.approx(0.125)


def test_without_a_table_compute_is_refused() -> None:
    with pytest.raises(BadParameter, match="calibration"):
        solve(fake_manifest(calibration=[]), 0.5)


def test_a_preset_the_bundle_lacks_is_refused() -> None:
    manifest = fake_manifest(presets={"full": {"size_px": 28, "threshold": 0.0}})
    with pytest.raises(BadParameter, match="economy"):
        choose(manifest, preset="economy")


def test_load_and_deadlines_look_at_time_not_at_macs() -> None:
    slow = [
        point.model_copy(update={"time_ratio": 0.95}) if point.threshold else point for point in MANIFEST.calibration
    ]
    manifest = fake_manifest(calibration=[point.model_dump() for point in slow])
    assert solve(manifest, 0.6) == Choice(28, 0.5)
    assert cheaper(manifest, Choice(28, 0.0), 0.6) == Choice(14, 0.0)  # skipping would save MACs and no time
    assert cheaper(manifest, Choice(14, 0.0), 0.6) == Choice(14, 0.0)
    assert expected(manifest, Choice(28, 0.25)).macs_ratio == pytest.approx(0.8)
    assert expected(manifest, Choice(28, 0.25)).time_ratio == pytest.approx(0.975)


def test_times_are_those_of_the_precision_that_answers() -> None:
    manifest = fake_manifest(packing={"float32": 0.0, "int8": 0.35})
    assert cheaper(manifest, Choice(28, 0.0), 0.6) == Choice(28, 0.5)  # which reads the table by size, once
    int8 = timed(manifest, "int8")
    assert expected(int8, Choice(28, 0.5)).time_ratio == pytest.approx(0.95)
    assert expected(int8, Choice(28, 0.5)).macs_ratio == pytest.approx(0.6)
    assert expected(int8, Choice(28, 0.0)).time_ratio == 1.0  # no gate runs
    small = manifest.graph(14).dense_macs / manifest.full.dense_macs
    assert expected(int8, Choice(14, 0.5)).time_ratio == pytest.approx(0.2 + 0.35 * small, abs=1e-4)
    assert cheaper(int8, Choice(28, 0.0), 0.6) == Choice(14, 0.0)
    assert timed(manifest, "float32") == manifest
    assert timed(manifest, "float16") is manifest  # nobody measured it


def looking_twice(**changes: Any) -> Manifest:
    points = [(14, 0.5, 0.1, 0.5, 0.84), (14, 0.7, 0.2, 0.6, 0.884), (14, 0.9, 0.4, 0.8, 0.90)]
    names = ("size_px", "sure", "looked_again", "macs_ratio", "accuracy")
    looks = [{"again_px": 28, **dict(zip(names, point, strict=True))} for point in points]
    return fake_manifest(second_looks=looks, **changes)


def test_two_looks_cost_the_first_and_a_share_of_the_second() -> None:
    manifest = looking_twice()
    assert expected(manifest, Choice(14, 0.0, 0.7)) == pytest.approx((0.6, 0.6, 0.884, 0.2))
    assert expected(manifest, Choice(14, 0.0, 0.8)) == pytest.approx((0.7, 0.7, 0.892, 0.3))  # between 0.7 and 0.9
    assert expected(manifest, Choice(14, 0.0, 1.0)) == pytest.approx((1.4, 1.4, 0.90, 1.0))  # everybody
    assert expected(manifest, Choice(14, 0.0, 0.25)) == pytest.approx((0.45, 0.45, 0.82, 0.05))  # nobody to a tenth
    assert expected(manifest, Choice(28, 0.0, 0.9)) == expected(manifest, Choice(28, 0.0))  # there is no larger size
    other = expected(manifest, Choice(14, 0.5, 0.7))
    assert other[:2] == pytest.approx((0.2 + 0.2 * 0.6, 0.2 + 0.2 * 0.6))
    assert math.isnan(other.accuracy)


def test_a_preset_may_look_twice_and_sure_is_as_given_else() -> None:
    manifest = looking_twice(presets={"balanced": {"size_px": 14, "threshold": 0.0, "sure": 0.7}})
    assert choose(manifest) == choose(manifest, preset="balanced") == Choice(14, 0.0, 0.7)
    assert choose(manifest, sure=0.0) == Choice(14, 0.0)
    assert choose(manifest, sure=0.6) == Choice(14, 0.0, 0.6)
    assert choose(manifest, size_px=14) == Choice(14, 0.0)
    assert choose(manifest, threshold=0.5, size_px=14, sure=0.6) == Choice(14, 0.5, 0.6)
    assert choose(manifest, compute=0.6, sure=0.6) == Choice(28, 0.5, 0.6)


def test_compute_buys_one_look_and_load_lowers_along_both() -> None:
    manifest = looking_twice()
    assert solve(manifest, 0.6) == Choice(28, 0.5)
    assert cheaper(manifest, Choice(28, 0.0), 0.6) == Choice(14, 0.0, 0.7, 28)  # more accurate than (28, 0.5)
    assert cheaper(manifest, Choice(28, 0.0), 0.7) == Choice(14, 0.0, pytest.approx(0.8), 28)  # type: ignore[arg-type]
    assert cheaper(manifest, Choice(14, 0.0, 0.7), 0.45) == Choice(14, 0.0)  # below the cheapest two looks
    assert cheaper(manifest, Choice(28, 0.0), 0.6, size_px=28) == Choice(28, 0.5)
    assert cheaper(manifest, Choice(14, 0.0, 0.5), 0.5) == Choice(14, 0.0, 0.5)


def test_where_images_are_hard_two_looks_are_as_dear_as_they_are() -> None:
    manifest = looking_twice()
    assert expected(manifest, Choice(14, 0.0, 0.7), looks_ratio=2.0) == pytest.approx((0.8, 0.8, 0.884, 0.4))
    assert expected(manifest, Choice(14, 0.0, 0.7), looks_ratio=9.0).looked_again == 1.0  # no more than all
    assert cheaper(manifest, Choice(28, 0.0), 0.6, looks_ratio=9.0) == Choice(28, 0.5)  # one look, and cheaper
    assert cheaper(manifest, Choice(28, 0.0), 1.5, looks_ratio=9.0) == Choice(28, 0.0)  # not what costs more
    assert cheaper(manifest, Choice(14, 0.0, 0.7), 0.9, looks_ratio=4.0).sure < 0.7  # what it takes now is lowered
