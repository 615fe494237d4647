"""PURE: what a run measured, one column a quantity, and how columns of several workers become one.

A column is NaN where a request had no answer or the server doesn't tell. It knows no HTTP and no statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Outcomes, in the order of their codes. A healthy service under any load gives the first four only.
OUTCOMES = ("ok", "refused", "late", "cancelled", "invalid", "failed", "garbage", "connection", "timeout")
UNHEALTHY = OUTCOMES[4:]
PHASES = ("decode", "queue", "inference", "total")
MEASURED = (
    "due_s",  # from the run's start
    "lag_s",  # how much later than due it left the generator
    "latency_s",  # from when it was due to when its last byte was read
    "outcome",  # index into OUTCOMES
    "image",  # index into the images
    "point",  # index into the mix's operating points
)
ANSWERED = (
    "top1",  # 1 if the first label is the image's
    "top5",
    "degraded",
    "cached",
    "threshold",
    "size_px",
    "macs_ratio",
    "skipped_ratio",  # of the patches, mean over gated layers
    "batch_size",
    *(f"{phase}_s" for phase in PHASES),
)
Column = NDArray[np.float64]


@dataclass(frozen=True)
class Records:
    """N requests in the order they were due."""

    columns: dict[str, Column]  # of (N,) each
    errors: dict[str, int] = field(default_factory=dict)  # what went wrong, in words -> how often
    layers: dict[str, list[float]] = field(
        default_factory=dict
    )  # point index -> [answers, skipped share of each layer]

    def __len__(self) -> int:
        return len(self.columns["due_s"])

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def where(self, mask: NDArray[np.bool_]) -> Records:
        """The requests for which `mask` (N,) is true."""
        return replace(self, columns={name: values[mask] for name, values in self.columns.items()})

    def after(self, others: Records) -> Records:
        """The same requests, as if they had begun when the last of `others` had ended."""
        by_s = float((others["due_s"] + np.nan_to_num(others["latency_s"])).max(initial=0.0))
        return replace(self, columns=self.columns | {"due_s": self["due_s"] + by_s})

    def ended(self, *outcomes: str) -> NDArray[np.bool_]:
        """Which requests (N,) ended in one of these outcomes."""
        return np.isin(self.columns["outcome"], [OUTCOMES.index(name) for name in outcomes])

    def skipped_per_layer(self, point: int) -> list[float] | None:
        """Mean share of the patches that each layer skipped at one operating point; None if nobody told."""
        if (sums := self.layers.get(str(point))) is None:
            return None
        return [total / sums[0] for total in sums[1:]]

    def to_json(self) -> dict[str, Any]:
        """Columns with microseconds and ratios kept; NaN becomes null."""
        columns = {
            name: [None if value != value else round(value, 6) for value in values.tolist()]
            for name, values in self.columns.items()
        }
        return {"columns": columns, "errors": self.errors, "layers": self.layers}


def from_json(document: dict[str, Any]) -> Records:
    """What `to_json` wrote.

    Raises:
        ValueError: a column is missing or of another length.
    """
    try:
        columns = {name: np.array(document["columns"][name], np.float64) for name in (*MEASURED, *ANSWERED)}
        if len({len(values) for values in columns.values()}) != 1:
            raise ValueError("columns differ in length")
        return Records(columns, dict(document["errors"]), dict(document["layers"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no records of a load test: {error}") from None


def build(rows: Sequence[dict[str, float]], errors: Counter[str], layers: dict[int, list[list[float]]]) -> Records:
    """Records from one dictionary a request, what went wrong, and each answer's skipped share of every layer."""
    ordered = sorted(rows, key=lambda row: row["due_s"])
    names = (*MEASURED, *ANSWERED)
    columns = {name: np.array([row.get(name, np.nan) for row in ordered], np.float64) for name in names}
    sums = {
        str(point): [float(len(shares)), *np.round(np.sum(shares, axis=0), 4).tolist()]
        for point, shares in sorted(layers.items())
    }
    return Records(columns, dict(sorted(errors.items())), sums)


def concatenate(parts: Sequence[Records]) -> Records:
    """The records of several workers of one plan, as if one had sent them all."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].columns}
    order = np.argsort(columns["due_s"], kind="stable")
    errors: Counter[str] = Counter()
    layers: dict[str, list[float]] = {}
    for part in parts:
        errors.update(part.errors)
        for point, sums in part.layers.items():
            before = layers.get(point, [0.0] * len(sums))
            layers[point] = [a + b for a, b in zip(before, sums, strict=True)]
    return Records({name: values[order] for name, values in columns.items()}, dict(sorted(errors.items())), layers)
