"""PURE: from measured (input size, threshold) points to the best accuracy at each cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def frontier(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats: more accurate than every cheaper one; dearest first."""
    best: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["macs_ratio"], -row["top1"])):
        if not best or row["top1"] > best[-1]["top1"]:
            best.append(row)
    return best[::-1]


def best_within(rows: Sequence[dict[str, Any]], macs_ratio: float) -> dict[str, Any] | None:
    """The most accurate row that spends at most the share `macs_ratio` of the dense MACs, or None."""
    affordable = [row for row in rows if row["macs_ratio"] <= macs_ratio]
    return max(affordable, key=lambda row: (row["top1"], -row["macs_ratio"]), default=None)
