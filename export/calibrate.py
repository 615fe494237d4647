"""PURE: from measured rows (`models.evaluate` on held-out training images) to the manifest's table and presets."""

from __future__ import annotations

from typing import Any

from service.artifact import CalibrationPoint, Preset, Spread

# Accuracy a preset may lose against computing everything, on the calibration images.
TOLERATED_LOSS = {"full": 0.0, "balanced": 0.005, "economy": 0.015}


def calibration_points(rows: list[dict[str, Any]]) -> tuple[CalibrationPoint, ...]:
    """The manifest's table."""
    return tuple(
        CalibrationPoint(
            size_px=row["size_px"],
            threshold=row["threshold"],
            macs_ratio=Spread(mean=row["macs_ratio"], p10=row["macs_ratio_p10"], p90=row["macs_ratio_p90"]),
            skipped_patches=row["skipped_patches"],
            keep_per_layer=tuple(row["keep_per_layer"]),
            accuracy=row["top1"],
        )
        for row in rows
    )


def dense_row(rows: list[dict[str, Any]], full_px: int) -> dict[str, Any]:
    """The row that computes everything: threshold 0 at the full size; ValueError if it's not among them."""
    for row in rows:
        if row.get("size_px") == full_px and row["threshold"] == 0:
            return row
    raise ValueError(f"no row for threshold 0 at the full size, {full_px} px")


def choose_presets(rows: list[dict[str, Any]], full_px: int) -> dict[str, Preset]:
    """For each preset the cheapest row within its tolerated loss, of any size; `full` computes everything.

    Such a row is always on the frontier: a cheaper one as accurate would have been taken.
    """
    full = dense_row(rows, full_px)
    presets = {"full": full}
    for name in ("balanced", "economy"):
        good = [row for row in rows if row["top1"] >= full["top1"] - TOLERATED_LOSS[name] - 1e-9]
        presets[name] = min(good, key=lambda row: (row["macs_ratio"], -row["top1"]))
    return {name: Preset(size_px=row["size_px"], threshold=row["threshold"]) for name, row in presets.items()}
