"""PURE: from measured rows (`models.evaluate` on held-out training images) to the manifest's table and presets."""

from __future__ import annotations

from typing import Any

from service.artifact import CalibrationPoint, Preset, Spread

# Accuracy a preset may lose against computing everything, on the calibration images.
TOLERATED_LOSS = {"full": 0.0, "balanced": 0.005, "economy": 0.015}


def calibration_points(
    rows: list[dict[str, Any]], size_px: int, dense_macs: int, full_macs: int
) -> list[CalibrationPoint]:
    """Rows of `models.evaluate` at one input size, their MACs expressed against the full size's dense model."""
    scale = dense_macs / full_macs
    return [
        CalibrationPoint(
            size_px=size_px,
            threshold=row["threshold"],
            macs_ratio=Spread(
                mean=round(row["macs_ratio"] * scale, 4),
                p10=round(row["macs_ratio_p10"] * scale, 4),
                p90=round(row["macs_ratio_p90"] * scale, 4),
            ),
            skipped_patches=row["skipped_patches"],
            keep_per_layer=tuple(row["keep_per_layer"]),
            accuracy=row["top1"],
        )
        for row in rows
    ]


def choose_presets(points: list[CalibrationPoint]) -> dict[str, Preset]:
    """For each preset the cheapest point within its tolerated loss; `full` is threshold 0 at full size."""
    full_size = max(point.size_px for point in points)
    full = next((point for point in points if point.size_px == full_size and point.threshold == 0), None)
    if full is None:
        raise ValueError("the calibration has no row for threshold 0 at the full size")
    presets = {"full": Preset(size_px=full_size, threshold=0.0)}
    for name in ("balanced", "economy"):
        good = [point for point in points if point.accuracy >= full.accuracy - TOLERATED_LOSS[name] - 1e-9]
        best = min(good, key=lambda point: point.macs_ratio.mean)
        presets[name] = Preset(size_px=best.size_px, threshold=best.threshold)
    return presets
