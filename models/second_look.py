"""PURE: two looks at an image, from the answers of one: a small input first, the full one where that isn't sure.

What a preset may promise is judged by paired differences: on the same images, how much is lost against computing
everything, and the standard error of that. It knows no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Probabilities of the first label that are enough. Lower ones lose several points, higher ones look at most twice.
SURES = tuple(round(0.05 * step, 2) for step in range(8, 17))

Row = dict[str, Any]


def lost_error(right: NDArray[np.bool_], full: NDArray[np.bool_]) -> float:
    """The standard error of the share of images lost against `full`, from who was right on each image, both (n,)."""
    return float((full.astype(np.float64) - right).std() / np.sqrt(len(full)))


def second_looks(
    points: NDArray[np.float64], right: NDArray[np.bool_], probability: NDArray[np.float32], macs: NDArray[np.float32]
) -> list[Row]:
    """What two looks at threshold 0 cost and score, from every smaller size and for each of SURES.

    Args:
        points: (R, 2) input size in px and threshold of each setting that was measured in one look.
        right: (R, n) whether the answer was right.
        probability: (R, n) of the answer.
        macs: (R, n) share of the dense MACs at the full size.

    Returns: nothing where the full size wasn't measured at threshold 0.
    """
    settings = {int(size_px): index for index, (size_px, threshold) in enumerate(points.tolist()) if threshold == 0}
    full_px = int(points[:, 0].max())
    if full_px not in settings:
        return []
    full, rows = settings.pop(full_px), []
    for size_px, first in sorted(settings.items(), reverse=True):
        for sure in SURES:
            again = probability[first] < sure
            answered = np.where(again, right[full], right[first])
            rows.append(
                {
                    "size_px": size_px,
                    "sure": sure,
                    "looked_again": round(float(again.mean()), 4),
                    "macs_ratio": round(float((macs[first] + again * macs[full]).mean()), 4),
                    "top1": round(float(answered.mean()), 4),
                    "lost_error": round(lost_error(answered, right[full]), 5),
                }
            )
    return rows


def in_words(rows: list[Row]) -> str:
    """Two looks for a person."""
    lines = [f"{'from px':>7} {'sure':>5} {'looked again':>12} {'MACs decrease':>13} {'top-1':>8}"]
    lines += [
        f"{row['size_px']:7} {row['sure']:5.2f} {100 * row['looked_again']:10.1f} % "
        f"{100 * (1 - row['macs_ratio']):11.1f} % {100 * row['top1']:6.2f} %"
        for row in rows
    ]
    return "\n".join(lines)
