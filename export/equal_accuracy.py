"""PURE: how fast a rival is where it is as accurate as we are: straight lines between its own best points.

It knows rows of the benchmark, as they are written, and nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from export.rivals import DENSE, DENSE_INT8, MERGING, OPENVINO
from service.artifact import Precision
from service.budget import Choice

COMPARED: dict[Precision, tuple[str, ...]] = {  # ours, and who computes less beside it
    "float32": (DENSE, MERGING),
    "int8": (DENSE_INT8, OPENVINO),  # which computes in bf16 where the CPU does
}
WORDS = {
    DENSE: "lower resolution",
    DENSE_INT8: "lower resolution, int8",
    MERGING: "token merging",
    OPENVINO: "lower resolution in OpenVINO",
}

Row = dict[str, Any]
Speed = tuple[float, float]  # accuracy, images/s


def setting(full_px: int, size_px: int, threshold: float, sure: float = 0.0, again_px: int = 0) -> Choice:
    """A point as it is asked for: that a second look is at the full size goes without saying."""
    return Choice(size_px, threshold, sure, 0 if again_px == full_px else again_px)


def frontier(points: Sequence[Speed]) -> list[Speed]:
    """The points that no other beats: more accurate than every faster one; fastest and least accurate first."""
    best: list[Speed] = []
    for point in sorted(points, key=lambda point: (-point[1], -point[0])):
        if not best or point[0] > best[-1][0]:
            best.append(point)
    return best


def images_s_at(points: Sequence[Speed], accuracy: float) -> float | None:
    """Images/s at an accuracy, by straight lines along the frontier; None outside of what was measured."""
    best = frontier(points)
    for (low, fast), (high, slow) in pairwise(best):
        if low <= accuracy <= high:
            return fast + (slow - fast) * (accuracy - low) / (high - low)
    return next((images_s for known, images_s in best if known == accuracy), None)


def speeds(rows: Sequence[Row], kind: str, *, twice: bool = False) -> list[Speed]:
    """A kind's points in the largest batches, in one look or, with `twice`, in two; the first row is dense and full.

    Token merging's begin with the dense model, where nothing is merged.
    """
    largest, full_px = max(row["batch_size"] for row in rows), rows[0]["size_px"]
    return [
        (row["accuracy"], row["images_s"])
        for row in rows
        if row["batch_size"] == largest
        and row["accuracy"] is not None
        and (row["sure"] > 0) == twice
        and (row["precision"] == kind or kind == MERGING and (row["precision"], row["size_px"]) == (DENSE, full_px))
    ]


def compare(rows: Sequence[Row], presets: Mapping[str, Choice]) -> list[Row]:
    """Presets that spend less, two looks, skipped patches, in each precision beside rivals; largest batches first."""
    sizes = sorted({row["batch_size"] for row in rows}, reverse=True)
    return [
        compared for size in sizes for compared in _compare([row for row in rows if row["batch_size"] == size], presets)
    ]


def _compare(rows: Sequence[Row], presets: Mapping[str, Choice]) -> list[Row]:
    """The same in batches of one size."""
    found = []
    known = [row for row in rows if row["accuracy"] is not None]
    for precision, kinds in COMPARED.items():
        names = {point: name for name, point in presets.items() if name != "full"}
        for row in (row for row in known if row["precision"] == precision):
            look = row["size_px"], row["threshold"], row["sure"], row.get("again_px", 0)
            point = setting(rows[0]["size_px"], *look)
            if point not in names and not point.sure and not point.threshold:
                continue
            name = names.get(point, _in_name(point))
            reached = {kind: images_s_at(speeds(rows, kind), row["accuracy"]) for kind in kinds}
            found.append(
                {"setting": name, "precision": precision, "batch_size": row["batch_size"]}
                | {"accuracy": row["accuracy"], "images_s": row["images_s"]}
                | {"rivals": {kind: speed and round(speed, 2) for kind, speed in reached.items()}}
            )
    return found


def _in_name(point: Choice) -> str:
    if not point.sure:
        return f"{point.size_px} px at threshold {point.threshold:g}"
    return f"two looks from {point.size_px} px" + (f" to {point.again_px} px" if point.again_px else "")


def in_words(found: Sequence[Row]) -> str:
    """The comparison for a person."""
    lines = []
    for row in found:
        beside = ", ".join(
            f"{WORDS[kind]} {'-' if speed is None else f'{speed:.1f}'}" for kind, speed in row["rivals"].items()
        )
        lines.append(
            f"at {100 * row['accuracy']:.2f} % ({row['setting']}, {row['precision']}), images/s in batches of "
            f"{row['batch_size']}: skipvit {row['images_s']:.1f}, {beside}"
        )
    return "\n".join(lines)
