"""PURE: what the result of a sweep says: rates held, accuracy over all runs, the bargain in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.summary import wilson

REFUSED_SHOWN = 0.01  # of the requests; more is no longer "held"
SMALL_LOSS = 0.02  # of accuracy

Row = dict[str, Any]


def steady(result: Row, *, adaptive: bool = False) -> dict[str, list[Row]]:
    """The runs at fixed rates that had answers, by operating point, slowest rate first."""
    found: dict[str, list[Row]] = {}
    for row in sorted((row for row in result["cells"] if row["kind"] == "steady"), key=lambda row: row["rate_rps"]):
        if row["adaptive"] == adaptive and row["summary"]["latency_s"]["p99"]:
            found.setdefault(row["query"], []).append(row)
    return found


def held_rps(rows: Sequence[Row], slo_s: float) -> float:
    """The highest measured rate up to which p99 stays within the objective and next to nothing is refused."""
    held = 0.0
    for row in rows:
        if row["summary"]["latency_s"]["p99"] > slo_s or missing_ratio(row) > REFUSED_SHOWN:
            break
        held = float(row["rate_rps"])
    return held


def pooled(result: Row, query: str) -> Row:
    """Top-1 of an operating point over all its runs with fixed compute: load doesn't change what is answered."""
    rows = [row for row in result["cells"] if row["query"] == query and not row["adaptive"] and row["summary"]["top1"]]
    weights = [row["summary"]["outcomes"].get("ok", 0) for row in rows]
    value = float(np.average([row["summary"]["top1"]["value"] for row in rows], weights=weights))
    images = max(row["summary"]["top1"]["images"] for row in rows)
    low, high = wilson(value, images)
    return {"value": value, "low": low, "high": high, "images": images}


def named(query: str) -> str:
    """An operating point for a person."""
    return query.replace("=", " ").replace("&", ", ")


def missing_ratio(row: Row) -> float:
    """Share of the requests that got no good answer."""
    summary = row["summary"]
    answered: int = summary["outcomes"].get("ok", 0)
    return 1 - answered / max(1, int(summary["requests"]))


def layers(row: Row) -> list[float]:
    """Share of the patches that each layer skipped; empty if the server doesn't tell."""
    (point,) = row["summary"]["points"].values()
    shares: list[float] = point["skipped_per_layer"] or []
    return shares


def held_in_words(rps: float) -> str:
    """A rate that was held, or that none was."""
    return f"{rps:.3g} requests/s" if rps else "at no measured rate"


def images_in_words(result: Row) -> str:
    """How many images an accuracy stands on, and how sure that makes it."""
    point = pooled(result, result["reference"])
    return f"{point['images']} images, ±{50 * (point['high'] - point['low']):.1f} points at 95 %"


def frontier(rows: Sequence[Row], top1: dict[str, Row]) -> list[tuple[float, float]]:
    """(p99 in ms, top-1) of the runs that no other run beats in both, fastest first."""
    best: list[tuple[float, float]] = []
    for p99, share in sorted((p99_ms(row), float(top1[row["query"]]["value"])) for row in rows):
        if not best or share > best[-1][1]:
            best.append((p99, share))
    return best


def p99_ms(row: Row) -> float:
    """The p99 latency of a run."""
    return 1e3 * float(row["summary"]["latency_s"]["p99"])


def tradeoff(result: Row) -> str:
    """Where another operating point helps most against the reference, among those that cost little accuracy."""
    lines, reference = steady(result), result["reference"]
    top1 = {query: pooled(result, query)["value"] for query in lines}
    base = {row["rate"]: row for row in lines.get(reference, [])}
    others = [row for query, rows in lines.items() for row in rows if query != reference and row["rate"] in base]
    close = [row for row in others if top1[row["query"]] >= top1[reference] - SMALL_LOSS] or others
    if not close:
        return "Accuracy against p99 latency"
    row = max(close, key=lambda row: p99_ms(base[row["rate"]]) / p99_ms(row))
    sides = [
        f"{p99_ms(one):.0f} ms at {named(one['query'])} ({100 * top1[one['query']]:.1f}\u00a0%\u00a0right)"
        for one in (base[row["rate"]], row)
    ]
    return f"p99 at {row['rate_rps']:.3g} arrivals/s: {', '.join(sides)}"
