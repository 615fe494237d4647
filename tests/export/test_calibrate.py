"""Presets are the fastest points within their tolerated loss; the manifest's table is what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from export.calibrate import (
    MARGIN,
    PACKING,
    calibration_points,
    choose_presets,
    dense_row,
    second_look_points,
    time_ratios,
)
from service.artifact import Preset


def rows(*points: tuple[int, float, float, float]) -> list[dict[str, Any]]:
    """Rows as `models.evaluate` writes them, of (size, threshold, share of the full dense MACs, top-1)."""
    return [
        {
            "size_px": size_px,
            "threshold": threshold,
            "macs_ratio": macs_ratio,
            "macs_ratio_p10": macs_ratio - 0.01,
            "macs_ratio_p90": macs_ratio + 0.01,
            "skipped_patches": 1.5,
            "keep_per_layer": [1.0, 0.5],
            "top1": top1,
            "lost_error": 0.0,
        }
        for size_px, threshold, macs_ratio, top1 in points
    ]


MEASURED = rows(
    (112, 0.0, 1.01, 0.900),
    (112, 0.3, 0.80, 0.895),  # exactly half a point lost
    (112, 0.6, 0.70, 0.894),
    (84, 0.0, 0.60, 0.885),  # one and a half
    (84, 0.3, 0.50, 0.8849),
    (56, 0.0, 0.55, 0.86),
)


def test_time_is_macs_and_packing_where_gates_run() -> None:
    found = time_ratios(rows((112, 0.0, 1.0, 0.9), (112, 0.3, 0.8, 0.9), (56, 0.3, 0.2, 0.8), (56, 0.0, 0.25, 0.8)))
    assert found == [1.0, 0.8 + PACKING["float32"], 0.2 + 0.25 * PACKING["float32"], 0.25]


def test_a_smaller_input_without_gates_is_preferred_to_fewer_macs_that_take_longer() -> None:
    measured = rows((112, 0.0, 1.0, 0.900), (98, 0.0, 0.765, 0.896), (98, 0.1, 0.70, 0.896))
    assert choose_presets(measured, [], 112)["balanced"] == Preset(size_px=98, threshold=0.0)


def test_presets_are_the_fastest_rows_within_tolerance_over_all_sizes() -> None:
    presets = choose_presets(MEASURED, [], 112)
    found = {name: (preset.size_px, preset.threshold) for name, preset in presets.items()}
    assert found == {"full": (112, 0.0), "balanced": (112, 0.3), "economy": (84, 0.0)}


def test_a_preset_computes_everything_where_nothing_cheaper_is_good_enough() -> None:
    presets = choose_presets(rows((112, 0.0, 1.01, 0.9), (112, 0.5, 0.8, 0.8), (84, 0.0, 0.6, 0.7)), [], 112)
    assert {(preset.size_px, preset.threshold) for preset in presets.values()} == {(112, 0.0)}


def twice(*points: tuple[int, float, float, float, float]) -> list[dict[str, Any]]:
    """Two looks as `models.evaluate` writes them, of (size, sure, share of MACs, top-1, standard error)."""
    names = ("size_px", "sure", "macs_ratio", "top1", "lost_error")
    same = {"looked_again": 0.2, "again_px": 112, "threshold": 0.0}
    return [dict(zip(names, point, strict=True)) | same for point in points]


def test_two_looks_are_taken_where_they_are_faster() -> None:
    looks = twice((56, 0.5, 0.45, 0.886, 0.0), (56, 0.7, 0.6, 0.896, 0.0), (84, 0.7, 0.7, 0.9, 0.0))
    presets = choose_presets(MEASURED, looks, 112)
    assert presets["full"] == Preset(size_px=112, threshold=0.0)
    assert presets["balanced"] == Preset(size_px=56, threshold=0.0, sure=0.7)
    assert presets["economy"] == Preset(size_px=56, threshold=0.0, sure=0.5)
    assert second_look_points(looks)[1].model_dump() == {
        "size_px": 56,
        "again_px": 112,
        "sure": 0.7,
        "looked_again": 0.2,
        "macs_ratio": 0.6,
        "accuracy": 0.896,
    }


def test_the_last_look_of_a_preset_is_the_full_one_with_nothing_skipped() -> None:
    (row,) = twice((56, 0.7, 0.3, 0.9, 0.0))
    for other in ({"again_px": 98}, {"again_px": 126}, {"threshold": 0.1}):
        assert choose_presets(MEASURED, [row | other], 112) == choose_presets(MEASURED, [], 112)
    assert len(second_look_points([row, row | {"again_px": 98}, row | {"threshold": 0.1}])) == 2


def test_what_may_be_lost_on_other_images_counts() -> None:
    close = 0.001 / MARGIN  # lost: 0.4 points and 0.1 at the most
    looks = twice((56, 0.7, 0.6, 0.896, close + 0.0001), (70, 0.7, 0.65, 0.896, close))
    assert choose_presets(MEASURED, looks, 112)["balanced"] == Preset(size_px=70, threshold=0.0, sure=0.7)
    uncertain = [row | {"lost_error": 0.01 * (row["threshold"] > 0)} for row in MEASURED]
    assert choose_presets(uncertain, [], 112)["balanced"] == Preset(size_px=112, threshold=0.0)


def test_the_table_is_what_was_measured() -> None:
    points = calibration_points(MEASURED)
    assert [(p.size_px, p.threshold, p.macs_ratio.mean, p.accuracy) for p in points] == [
        (row["size_px"], row["threshold"], row["macs_ratio"], row["top1"]) for row in MEASURED
    ]
    assert points[0].macs_ratio.p10 == 1.0
    assert points[0].macs_ratio.p90 == 1.02
    assert points[0].keep_per_layer == (1.0, 0.5)
    assert points[0].skipped_patches == 1.5


@pytest.mark.parametrize("measured", [rows((112, 0.5, 0.8, 0.9)), rows((84, 0.0, 0.6, 0.9)), [{"threshold": 0.0}]])
def test_rows_without_the_one_that_computes_everything_are_refused(measured: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="no row for threshold 0 at the full size, 112 px"):
        dense_row(measured, 112)
    with pytest.raises(ValueError, match="no row for threshold 0"):
        choose_presets(measured, [], 112)
