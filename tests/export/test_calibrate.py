"""Presets are the cheapest points within their tolerated loss."""

from __future__ import annotations

import pytest

from export.calibrate import calibration_points, choose_presets


def rows(*triples: tuple[float, float, float]) -> list[dict[str, object]]:
    return [
        {
            "threshold": t,
            "macs_ratio": m,
            "macs_ratio_p10": m,
            "macs_ratio_p90": m,
            "skipped_patches": 1.0,
            "keep_per_layer": [1.0],
            "top1": a,
        }
        for t, m, a in triples
    ]


def test_presets_are_the_cheapest_points_within_tolerance_over_all_sizes() -> None:
    full = calibration_points(rows((0, 1.0, 0.900), (0.5, 0.8, 0.896), (0.9, 0.5, 0.80)), 112, 100, 100)
    small = calibration_points(rows((0, 1.0, 0.886), (0.5, 0.8, 0.870)), 84, 60, 100)
    presets = choose_presets(full + small)
    assert (presets["full"].size_px, presets["full"].threshold) == (112, 0)
    assert (presets["balanced"].size_px, presets["balanced"].threshold) == (112, 0.5)
    assert (presets["economy"].size_px, presets["economy"].threshold) == (84, 0)


def test_costs_are_against_the_full_size() -> None:
    (point,) = calibration_points(rows((0.2, 0.5, 0.9)), 84, 60, 100)
    assert point.macs_ratio.mean == pytest.approx(0.3)


def test_a_table_without_the_dense_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no row for threshold 0"):
        choose_presets(calibration_points(rows((0.5, 0.8, 0.9)), 112, 100, 100))
