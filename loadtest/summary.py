"""PURE: records become numbers: accuracy, latency, goodput, what was skipped, where the time went.

Latencies are those of good answers, from the moment each was due; what was refused or late misses the SLO. A run is
valid if the generator's own p99 send lag is at most MAX_LAG_RATIO of the p99 latency: then it wasn't the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.records import OUTCOMES, PHASES, UNHEALTHY, Column, Records

MAX_LAG_RATIO = 0.01
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
BINS = 24  # of the timeline
_Z = 1.959964  # 95 %


def summarise(records: Records, duration_s: float, slo_s: float, points: Sequence[str]) -> dict[str, Any]:
    """The summary of one run.

    Args:
        records: of the run.
        duration_s: of the schedule; answers may come later.
        slo_s: latency within which an answer counts as good.
        points: the operating points, in the order of the records' `point`.
    """
    ok = records.ended("ok")
    good = records.where(ok)
    finished_s = float((records["due_s"] + records["latency_s"])[ok].max(initial=duration_s))
    within = int((good["latency_s"] <= slo_s).sum())
    outcomes = {name: int(records.ended(name).sum()) for name in OUTCOMES}
    summary = {
        "requests": len(records),
        "outcomes": {name: count for name, count in outcomes.items() if count},
        "errors": records.errors,
        "healthy": not any(outcomes[name] for name in UNHEALTHY),
        "duration_s": round(duration_s, 3),
        "offered_rps": _round(len(records) / duration_s),
        "throughput_rps": _round(len(good) / finished_s),
        "slo_s": slo_s,
        "goodput_rps": _round(within / duration_s),
        "goodput_ratio": _round(within / len(records)) if len(records) else None,
        **_of_answers(good),
        "refused_ratio": _ratio(records.ended("refused")),
        "lag": _lag(records, good),
        "phases": _phases(good),
        "timeline": timeline(records, duration_s),
    }
    shown = records["point"].astype(int)
    summary["points"] = {
        name: {
            "requests": int((shown == index).sum()),
            **_of_answers(good.where(good["point"] == index)),
            "skipped_per_layer": _rounded(records.skipped_per_layer(index)),
        }
        for index, name in enumerate(points)
    }
    return summary


def percentiles(latency_s: Column) -> dict[str, float | None]:
    """p50 to the maximum (linear interpolation), and the mean; None without any."""
    if not len(latency_s):
        return dict.fromkeys((*QUANTILES, "mean"))
    values = [*np.quantile(latency_s, list(QUANTILES.values())).tolist(), float(latency_s.mean())]
    return {name: _round(value) for name, value in zip((*QUANTILES, "mean"), values, strict=True)}


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share seen in n independent trials (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(correct: Column, image: Column) -> dict[str, float | int] | None:
    """Share of right answers; the interval counts every image once, because asking again tells nothing new."""
    if not len(correct):
        return None
    distinct = len(np.unique(image))
    low, high = wilson(float(correct.mean()), distinct)
    return {"value": _round(float(correct.mean())), "low": _round(low), "high": _round(high), "images": distinct}


def timeline(records: Records, duration_s: float, bins: int = BINS) -> list[dict[str, Any]]:
    """The run in equal pieces of time, by when requests were due."""
    edges = np.linspace(0, duration_s, bins + 1)
    place = np.clip(np.digitize(records["due_s"], edges) - 1, 0, bins - 1)
    rows = []
    for index in range(bins):
        part = records.where(place == index)
        good = part.where(part.ended("ok"))
        rows.append(
            {
                "at_s": round(float(edges[index] + edges[index + 1]) / 2, 3),
                "offered_rps": _round(len(part) / (duration_s / bins)),
                "p50": percentiles(good["latency_s"])["p50"],
                "p99": percentiles(good["latency_s"])["p99"],
                "top1": _mean(good["top1"]),
                "answers": len(good),
                "macs_ratio": _mean(good["macs_ratio"]),
                "degraded_ratio": _mean(good["degraded"]),
                "unanswered_ratio": _ratio(~part.ended("ok")),
            }
        )
    return rows


def _of_answers(good: Records) -> dict[str, Any]:
    return {
        "latency_s": percentiles(good["latency_s"]),
        "top1": accuracy(good["top1"], good["image"]),
        "top5": accuracy(good["top5"], good["image"]),
        "macs_ratio": _mean(good["macs_ratio"]),
        "skipped_ratio": _mean(good["skipped_ratio"]),
        "threshold": _mean(good["threshold"]),
        "degraded_ratio": _mean(good["degraded"]),
        "cached_ratio": _mean(good["cached"]),
        "batch_size": _mean(good["batch_size"]),
    }


def _lag(records: Records, good: Records) -> dict[str, Any]:
    """How late requests left, and whether that is little enough to be believed."""
    lag, latency = percentiles(records["lag_s"]), percentiles(good["latency_s"])
    if lag["p99"] is None or not latency["p99"]:
        return {"p50_s": lag["p50"], "p99_s": lag["p99"], "max_s": lag["max"], "ratio": None, "valid": False}
    ratio = lag["p99"] / latency["p99"]
    valid = ratio <= MAX_LAG_RATIO
    return {"p50_s": lag["p50"], "p99_s": lag["p99"], "max_s": lag["max"], "ratio": _round(ratio), "valid": valid}


def _phases(good: Records) -> dict[str, Any] | None:
    """The server's phases beside the caller's time; overhead is all that is neither queue nor inference."""
    told = good.where(~np.isnan(good["total_s"]))
    if not len(told):
        return None
    phases: dict[str, Any] = {name: percentiles(told[f"{name}_s"]) for name in PHASES}
    outside = told["latency_s"] - told["total_s"]
    overhead = told["latency_s"] - told["queue_s"] - told["inference_s"]
    share = float(np.median(overhead / told["latency_s"]))
    return phases | {
        "outside": percentiles(outside),
        "overhead": percentiles(overhead),
        "overhead_ratio": _round(share),
    }


def _mean(values: Column) -> float | None:
    known = values[~np.isnan(values)]
    return _round(float(known.mean())) if len(known) else None


def _ratio(mask: Any) -> float | None:
    return _round(float(mask.mean())) if len(mask) else None


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _rounded(values: list[float] | None) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values]
