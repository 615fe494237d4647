"""PURE: from measured rows (`models.evaluate` on held-out training images) to the manifest's table and presets."""

from __future__ import annotations

from typing import Any

from service.artifact import CalibrationPoint, Preset, Spread

# Accuracy a preset may lose against computing everything, on the calibration images.
TOLERATED_LOSS = {"full": 0.0, "balanced": 0.005, "economy": 0.015}

# What gates and packing take beside the MACs, as a share of the dense model's time at the same input size: they pass
# over all tokens, kept or not. Fitted to batches of 8 and 32 of the bundled model (`python -m export.benchmark`).
PACKING = 0.12


def calibration_points(rows: list[dict[str, Any]]) -> tuple[CalibrationPoint, ...]:
    """The manifest's table."""
    times = time_ratios(rows)
    return tuple(
        CalibrationPoint(
            size_px=row["size_px"],
            threshold=row["threshold"],
            macs_ratio=Spread(mean=row["macs_ratio"], p10=row["macs_ratio_p10"], p90=row["macs_ratio_p90"]),
            time_ratio=time,
            skipped_patches=row["skipped_patches"],
            keep_per_layer=tuple(row["keep_per_layer"]),
            accuracy=row["top1"],
        )
        for row, time in zip(rows, times, strict=True)
    )


def time_ratios(rows: list[dict[str, Any]]) -> list[float]:
    """Time that an image of each row takes in a batch, as a share of the dense model's at the full size; predicted.

    At threshold 0 no gate runs: as long as its MACs say. Raises ValueError where a size has no row at threshold 0.
    """
    dense = {row["size_px"]: row["macs_ratio"] for row in rows if row["threshold"] == 0}
    if missing := {row["size_px"] for row in rows} - dense.keys():
        raise ValueError(f"no row for threshold 0 at {max(missing)} px")
    packing = {size_px: PACKING * ratio for size_px, ratio in dense.items()}
    return [round(row["macs_ratio"] + (packing[row["size_px"]] if row["threshold"] > 0 else 0), 4) for row in rows]


def dense_row(rows: list[dict[str, Any]], full_px: int) -> dict[str, Any]:
    """The row that computes everything: threshold 0 at the full size; ValueError if it's not among them."""
    for row in rows:
        if row.get("size_px") == full_px and row["threshold"] == 0:
            return row
    raise ValueError(f"no row for threshold 0 at the full size, {full_px} px")


def choose_presets(rows: list[dict[str, Any]], full_px: int) -> dict[str, Preset]:
    """For each preset the fastest row within its tolerated loss, of any size; `full` computes everything.

    Such a row is always on the frontier of time: a faster one as accurate would have been taken.
    """
    full = dense_row(rows, full_px)
    presets = {"full": full}
    for name in ("balanced", "economy"):
        least = full["top1"] - TOLERATED_LOSS[name] - 1e-9
        timed = zip(time_ratios(rows), rows, strict=True)
        presets[name] = min(
            ((time, row) for time, row in timed if row["top1"] >= least),
            key=lambda each: (each[0], -each[1]["top1"]),
        )[1]
    return {name: Preset(size_px=row["size_px"], threshold=row["threshold"]) for name, row in presets.items()}
