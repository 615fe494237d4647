"""PURE: from measured rows (`models.evaluate` on held-out training images) to the manifest's table and presets."""

from __future__ import annotations

from typing import Any

from service.artifact import CalibrationPoint, Precision, Preset, SecondLookPoint, Spread
from service.budget import time_ratio

# Accuracy a preset may lose against computing everything, on the calibration images: what was lost there, and so many
# standard errors of it, for other images are not the same, and those were seen by the start of training.
MARGIN = 2
TOLERATED_LOSS = {"full": 0.0, "balanced": 0.005, "economy": 0.015}

# What gates and packing take beside the MACs, as a share of the dense model's time at the same input size: they pass
# over all tokens, kept or not, and gain nothing where products are quick. Fitted to batches of 8 and 32 of the bundled
# model (`python -m export.benchmark`).
PACKING: dict[Precision, float] = {"float32": 0.1, "int8": 0.18}


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
    """Time that an image of each row takes in a batch, as a share of the dense model's at the full size; in float32.

    At threshold 0 no gate runs: as long as its MACs say. Raises ValueError where a size has no row at threshold 0.
    """
    dense = {row["size_px"]: row["macs_ratio"] for row in rows if row["threshold"] == 0}
    if missing := {row["size_px"] for row in rows} - dense.keys():
        raise ValueError(f"no row for threshold 0 at {max(missing)} px")
    packing = {size_px: PACKING["float32"] * ratio for size_px, ratio in dense.items()}
    return [time_ratio(row["macs_ratio"], row["threshold"], packing[row["size_px"]]) for row in rows]


def second_look_points(rows: list[dict[str, Any]]) -> tuple[SecondLookPoint, ...]:
    """The manifest's table of two looks: those at threshold 0."""
    return tuple(
        SecondLookPoint(
            size_px=row["size_px"],
            again_px=row["again_px"],
            sure=row["sure"],
            looked_again=row["looked_again"],
            macs_ratio=row["macs_ratio"],
            accuracy=row["top1"],
        )
        for row in rows
        if row["threshold"] == 0
    )


def dense_row(rows: list[dict[str, Any]], full_px: int) -> dict[str, Any]:
    """The row that computes everything: threshold 0 at the full size; ValueError if it's not among them."""
    for row in rows:
        if row.get("size_px") == full_px and row["threshold"] == 0:
            return row
    raise ValueError(f"no row for threshold 0 at the full size, {full_px} px")


def choose_presets(rows: list[dict[str, Any]], twice: list[dict[str, Any]], full_px: int) -> dict[str, Preset]:
    """For each preset the fastest way within its tolerated loss, in one look or two; `full` computes everything.

    A preset's last look is the full one: what it promises is measured against that.

    Args:
        rows, twice: what was measured of one look and of two; `lost_error` is the standard error of the accuracy that
            each loses against computing everything, on the same images.
    """
    full = dense_row(rows, full_px)
    ways = list(zip(time_ratios(rows), rows, strict=True))
    ways += [(row["macs_ratio"], row) for row in twice if (row["again_px"], row["threshold"]) == (full_px, 0)]
    presets = {"full": full}
    for name in ("balanced", "economy"):
        presets[name] = min(
            ((time, row) for time, row in ways if _lost(row, full) <= TOLERATED_LOSS[name] + 1e-9),
            key=lambda each: (each[0], -each[1]["top1"]),
        )[1]
    return {
        name: Preset(size_px=row["size_px"], threshold=row.get("threshold", 0.0), sure=row.get("sure", 0.0))
        for name, row in presets.items()
    }


def _lost(row: dict[str, Any], full: dict[str, Any]) -> float:
    """The accuracy a row loses, at most, on other images; none for the full row itself, whose error is 0."""
    lost: float = full["top1"] - row["top1"] + MARGIN * row["lost_error"]
    return lost
