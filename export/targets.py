"""PURE: the benchmark beside what it should reach: skipped MACs as saved time, the machine's best, the default's speed.

Dense is the same weights as timm's own forward exports them, in the same runtime; at threshold 0 it is the dense graph
that is built as ours are, which is faster. It knows the benchmark's result, as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from export.rivals import EXPORTED, TIMM

FEWER = (0.3, 0.5, 0.7)  # MACs than timm's forward has, as a share
NEAR = 0.06  # of one of these shares a pair of input size and threshold may lie
REALISED_ALONE, REALISED = 0.80, 0.90  # of the ideal speed-up: one image, more of them
NOTHING_SKIPPED, OF_BEST_GEMM = 0.97, 0.75
OVER_TIMM, OVER_DENSE, LOST_POINTS = 3.0, 2.2, 1.0  # of the default preset in the default precision
PRESET = "balanced"

Row = dict[str, Any]


class Target(NamedTuple):
    """A value beside what it should be."""

    name: str
    batch_size: int
    value: float | None  # None: nothing was measured there
    bound: float
    at_least: bool = True  # else at most

    @property
    def met(self) -> bool | None:
        """Whether the value is as it should be; None if there is none."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def targets(rows: Sequence[Row], equal_accuracy: Sequence[Row]) -> list[Target]:
    """Every target at every batch size."""
    found: list[Target] = []
    for batch_size in sorted({row["batch_size"] for row in rows}):
        at = [row for row in rows if row["batch_size"] == batch_size]
        presets = [row for row in equal_accuracy if (row["batch_size"], row["setting"]) == (batch_size, PRESET)]
        found += [
            Target(name, batch_size, *rest) for name, *rest in (*_skipping(at, batch_size), *_default(at, presets))
        ]
    return found


def _skipping(rows: Sequence[Row], batch_size: int) -> Iterator[tuple[Any, ...]]:
    """What one look in float32 makes of the MACs that it saves."""
    full_px, bound = rows[0]["size_px"], REALISED_ALONE if batch_size == 1 else REALISED
    timm = next((row for row in rows if row["precision"] == EXPORTED), None)
    ours = [row for row in rows if row["precision"] == "float32" and not row["sure"]]
    gated = [row for row in ours if row["threshold"]]
    for fewer in FEWER:
        name = f"realised at {100 * fewer:.0f} % fewer MACs"
        value = _on_the_line(timm, [row for row in gated if row["size_px"] == full_px], fewer)
        yield f"{name}, gates alone", value, bound
        value = _nearest(timm, [row for row in gated if row["size_px"] < full_px], fewer)
        yield f"{name}, smaller input and gates", value, bound
    plain = next((row for row in ours if row["size_px"] == full_px and not row["threshold"]), None)
    yield "threshold 0 over dense", plain and plain["speedup"], NOTHING_SKIPPED
    yield "threshold 0, GFLOP/s over the best product's", plain and plain["of_best_gemm"], OF_BEST_GEMM


def _default(rows: Sequence[Row], presets: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    """What the preset in the precision that a CPU gets is beside dense in float32."""
    ours = {row["precision"]: row for row in presets}
    own, dense = ours.get("int8") or ours.get("float32"), rows[0]
    for name, kind, bound in (("torch", TIMM, OVER_TIMM), ("ONNX Runtime", EXPORTED, OVER_DENSE)):
        other = next((row for row in rows if row["precision"] == kind), None)
        ratio = own["images_s"] / other["images_s"] if own and other else None
        yield f"{PRESET}, images/s over timm's forward in {name}", ratio, bound
    lost = 100 * (dense["accuracy"] - own["accuracy"]) if own and dense["accuracy"] is not None else None
    yield f"{PRESET}, points of accuracy lost", lost, LOST_POINTS, False


def _realised(timm: Row, row: Row) -> tuple[float, float]:
    """The share of timm's MACs that a row saves, and (timm's time / its time) / (timm's MACs / its MACs)."""
    share = row["macs_ratio"] / timm["macs_ratio"]
    return 1 - share, row["images_s"] / timm["images_s"] * share


def _on_the_line(timm: Row | None, rows: Sequence[Row], fewer: float) -> float | None:
    """What is realised at a cost, on the straight line between the measured points on both sides."""
    points = sorted(_realised(timm, row) for row in rows) if timm else []
    if not points or not points[0][0] <= fewer <= points[-1][0]:
        return None
    shares, realised = zip(*points, strict=True)
    return float(np.interp(fewer, shares, realised))


def _nearest(timm: Row | None, rows: Sequence[Row], fewer: float) -> float | None:
    """What is realised by the point whose cost is nearest, if one is near."""
    points = [_realised(timm, row) for row in rows] if timm else []
    near = [point for point in points if abs(point[0] - fewer) <= NEAR]
    return min(near, key=lambda point: abs(point[0] - fewer))[1] if near else None


def in_words(found: Sequence[Target]) -> str:
    """A line for each target, a column for each batch size."""
    sizes = sorted({target.batch_size for target in found})
    lines = [f"{'target':64s} " + " ".join(f"{f'batch {size}':>16s}" for size in sizes)]
    for name in dict.fromkeys(target.name for target in found):
        own = {target.batch_size: target for target in found if target.name == name}
        lines.append(f"{name:64s} " + " ".join(f"{_cell(own[size]):>16s}" for size in sizes))
    return "\n".join(lines)


def _cell(target: Target) -> str:
    if target.value is None:
        return "-"
    verdict = "met" if target.met else "MISSED"
    return f"{target.value:.2f} {'>=' if target.at_least else '<='} {target.bound:g} {verdict}"
