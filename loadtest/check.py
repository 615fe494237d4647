"""The gate: a sweep's ratios against a baseline's. Ratios only, so any machine can be the judge of any other's.

    python -m loadtest.check runs/loadtest/results.json loadtest/results/baseline.json
    python -m loadtest.check runs/loadtest/results.json loadtest/results/baseline.json --write

A ratio that got worse by more than its tolerance, or that is missing, is a regression: exit code 1. Better is fine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from loadtest.findings import pooled, steady
from loadtest.options import parser, refuse
from loadtest.results import EXIT_FAILED, EXIT_OK, read_json, write_json

MODULE = "loadtest.check"


class Rule(NamedTuple):
    """How one kind of ratio may change."""

    higher_is_better: bool
    tolerance: float
    relative: bool  # the tolerance is a share of the baseline's value


RULES = {
    "p99_over_p50": Rule(False, 0.6, True),  # at the slowest rate, of every operating point
    "capacity_ratio": Rule(True, 0.2, True),  # of every operating point over the reference's
    "top1_difference": Rule(True, 0.02, False),  # from the reference's, on the same images
    "macs_ratio": Rule(False, 0.05, False),
    "overhead_ratio": Rule(False, 0.15, False),  # of the latency at the slowest rate, neither queue nor inference
    "adaptive_goodput_gain": Rule(True, 0.3, False),  # over the ramp: adaptive minus fixed compute
}


class Regression(NamedTuple):
    """One ratio that got worse."""

    name: str
    found: float | None
    limit: float


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Every ratio that a sweep's result has, named `kind:operating point`."""
    reference, found = result["reference"], {}
    for query, rows in steady(result).items():
        latency, phases = rows[0]["summary"]["latency_s"], rows[0]["summary"]["phases"]
        found[f"p99_over_p50:{query}"] = latency["p99"] / latency["p50"]
        if phases:
            found[f"overhead_ratio:{query}"] = phases["overhead_ratio"]
        if query != reference:
            found[f"top1_difference:{query}"] = pooled(result, query)["value"] - pooled(result, reference)["value"]
    capacity = {row["query"]: row["summary"] for row in result["cells"] if row["kind"] == "capacity"}
    for query, summary in capacity.items():
        if query != reference and capacity[reference]["throughput_rps"]:
            found[f"capacity_ratio:{query}"] = summary["throughput_rps"] / capacity[reference]["throughput_rps"]
        if summary["macs_ratio"] is not None:
            found[f"macs_ratio:{query}"] = summary["macs_ratio"]
    ramps = {row["adaptive"]: row["summary"]["goodput_ratio"] for row in result["cells"] if row["kind"] == "ramp"}
    if len(ramps) == 2:
        found["adaptive_goodput_gain:ramp"] = ramps[True] - ramps[False]
    return {name: round(value, 4) for name, value in found.items()}


def regressions(found: dict[str, float], baseline: dict[str, float]) -> list[Regression]:
    """Every ratio of the baseline that is missing or worse than its tolerance allows."""
    worse = []
    for name, before in baseline.items():
        rule = RULES[name.partition(":")[0]]
        slack = rule.tolerance * (abs(before) if rule.relative else 1.0)
        limit = before - slack if rule.higher_is_better else before + slack
        now = found.get(name)
        if now is None or (now < limit if rule.higher_is_better else now > limit):
            worse.append(Regression(name, now, round(limit, 4)))
    return worse


def print_verdict(result: dict[str, Any], baseline: dict[str, Any]) -> int:
    """Say what got worse; the exit code."""
    worse = regressions(ratios(result), baseline["ratios"])
    for item in worse:
        shown = "missing" if item.found is None else f"{item.found:g}"
        print(f"{MODULE}: {item.name} is {shown}, the limit is {item.limit:g}", file=sys.stderr)
    if not worse:
        print(f"{len(baseline['ratios'])} ratios are within their tolerances")
    return EXIT_FAILED if worse else EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = parser(MODULE, __doc__)
    options.add_argument("result", type=Path, help="results.json of a sweep")
    options.add_argument("baseline", type=Path)
    options.add_argument("--write", action="store_true", help="make the result's ratios the baseline")
    given = options.parse_args(argv)
    try:
        result = read_json(given.result)
        if given.write:
            about = {name: result["environment"][name] for name in ("command", "commit", "cpu", "cpus", "date")}
            write_json(given.baseline, {"environment": about, "ratios": ratios(result)})
            return EXIT_OK
        return print_verdict(result, read_json(given.baseline))
    except (ValueError, KeyError, TypeError) as error:
        return refuse(MODULE, f"no result of a sweep, or no baseline: {error}")


if __name__ == "__main__":
    sys.exit(main())
