"""PURE: two looks at an image, from the answers of one: a small input first, a larger one where that isn't sure.

What a preset may promise is judged by paired differences: on the same images, how much is lost against computing
everything, and the standard error of that. It knows no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.frontier import frontier

# Probabilities of the first label that are enough. Lower ones lose several points, higher ones look at most twice.
SURES = tuple(round(0.05 * step, 2) for step in range(8, 17))

Row = dict[str, Any]


def lost_error(right: NDArray[np.bool_], full: NDArray[np.bool_]) -> float:
    """The standard error of the share of images lost against `full`, from who was right on each image, both (n,)."""
    return float((full.astype(np.float64) - right).std() / np.sqrt(len(full)))


def second_looks(
    points: NDArray[np.float64],
    right: NDArray[np.bool_],
    probability: NDArray[np.float32],
    macs: NDArray[np.float32],
    full_px: int,
) -> list[Row]:
    """What two looks cost and score, at any smaller size and any larger one, both at one threshold, for each of SURES.

    All of those at threshold 0; of the others those that none in two looks, as cheap, is as accurate as.

    Args:
        points: (R, 2) input size in px and threshold of each setting that was measured in one look.
        right: (R, n) whether the answer was right.
        probability: (R, n) of the answer.
        macs: (R, n) share of the dense MACs at the full size.
        full_px: the full size.

    Returns: nothing where the full size wasn't measured at threshold 0.
    """
    settings = {(int(size_px), float(threshold)): index for index, (size_px, threshold) in enumerate(points)}
    if (full_px, 0.0) not in settings:
        return []
    full, rows = right[settings[full_px, 0.0]], []
    for (size_px, threshold), first in sorted(settings.items(), reverse=True):
        for again_px in sorted({larger for larger, same in settings if larger > size_px and same == threshold}):
            second = settings[again_px, threshold]
            rows += [
                _row(
                    {"size_px": size_px, "threshold": threshold, "sure": sure, "again_px": again_px},
                    again := probability[first] < sure,
                    macs[first] + again * macs[second],
                    np.where(again, right[second], right[first]),
                    full,
                )
                for sure in SURES
            ]
    best = frontier(rows)
    return [row for row in rows if row["threshold"] == 0 or row in best]


def _row(
    setting: Row, again: NDArray[np.bool_], macs: NDArray[np.float32], right: NDArray[np.bool_], full: NDArray[np.bool_]
) -> Row:
    return setting | {
        "looked_again": round(float(again.mean()), 4),
        "macs_ratio": round(float(macs.mean()), 4),
        "top1": round(float(right.mean()), 4),
        "lost_error": round(lost_error(right, full), 5),
    }


def in_words(rows: list[Row]) -> str:
    """Two looks for a person: those of the frontier."""
    lines = [
        f"{'from px':>7} {'to px':>5} {'threshold':>9} {'sure':>5} {'looked again':>12} "
        f"{'MACs decrease':>13} {'top-1':>8}"
    ]
    lines += [
        f"{row['size_px']:7} {row['again_px']:5} {row['threshold']:9.2f} {row['sure']:5.2f} "
        f"{100 * row['looked_again']:10.1f} % {100 * (1 - row['macs_ratio']):11.1f} % {100 * row['top1']:6.2f} %"
        for row in frontier(rows)
    ]
    return "\n".join([*lines, "where no cheaper two looks are as accurate"])
