"""PURE: the result of an overhead run for a person: values beside their targets, and in words what has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loadtest.tables import Row

START_S, RESIDENT_MB, OVERHEAD_MS, RATIO, DECODE_MS = 3.0, 700.0, 3.0, 0.95, 0.5


class Held(NamedTuple):
    """A value beside its target."""

    name: str
    value: float | None  # None: can't be measured here
    unit: str
    target: float
    at_least: bool = False  # else at most

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is no value."""
        if self.value is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def targets(result: Mapping[str, Any]) -> list[Held]:
    """Every value that has a target, beside it."""
    start, together, found = result["start"], result["together"], result["memory"]
    overheads = [
        Held(f"overhead p50, one caller, {query}", alone["overhead_p50_ms"], "ms", OVERHEAD_MS)
        for query, alone in result["alone"].items()
    ]
    many = f"requests/s over engine images/s, {together['concurrency']} callers"
    return [
        Held("ready after process start, median", start["ready_p50_s"], "s", START_S),
        *overheads,
        Held(many, together["ratio"], "", RATIO, at_least=True),
        Held("decoding p50, 32 px PNG", result["decoding"][0]["decode_p50_ms"], "ms", DECODE_MS),
        Held("resident memory when ready", start["resident_mb"], "MB", RESIDENT_MB),
        Held("resident memory at most, under load", found.get("most_mb"), "MB", RESIDENT_MB),
    ]


def rows(held: Sequence[Held]) -> list[Row]:
    """The targets as rows of a table."""
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    return [
        {
            "measured": item.name,
            "value": "-" if item.value is None else f"{item.value:.3g} {item.unit}".strip(),
            "target": f"{'>=' if item.at_least else '<='} {item.target:g} {item.unit}".strip(),
            "verdict": verdicts[item.met],
        }
        for item in held
    ]


def details(result: Mapping[str, Any]) -> list[str]:
    """What has no target, in words."""
    beside = result["held_up"]
    return [
        *(f"one caller, {query}: {_alone(alone)}" for query, alone in result["alone"].items()),
        *_together(result["together"]),
        *(
            f"decoding {row['image']}: p50 {row['decode_p50_ms']:.2f} ms, "
            f"{row['decode_p50_ms_per_megapixel']:.2f} a megapixel"
            for row in result["decoding"]
        ),
        f"/healthz while {beside['image']}s are decoded: p50 {beside['healthz_p50_ms']:.1f}, p99 "
        f"{beside['healthz_p99_ms']:.1f} ms; beside nothing p50 {beside['healthz_beside_nothing_p50_ms']:.1f}, p99 "
        f"{beside['healthz_beside_nothing_p99_ms']:.1f} ms: what an answer takes for which nothing is computed",
        _memory(result["memory"]),
    ]


def _alone(alone: Mapping[str, float]) -> str:
    return (
        f"overhead p50/p95 {alone['overhead_p50_ms']:.2f}/{alone['overhead_p95_ms']:.2f} ms, engine "
        f"{alone['inference_p50_ms']:.1f}; decode {alone['decode_p50_ms']:.2f}, queue {alone['queue_p50_ms']:.2f}, "
        f"rest of the server {alone['rest_of_server_p50_ms']:.2f}, outside it {alone['outside_server_p50_ms']:.2f}"
    )


def _together(together: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{together['concurrency']} callers, {together['query']}: {together['requests_per_s']:.1f} requests/s; engine "
        f"{together['engine_images_per_s']:.1f} images/s at a mean batch of {together['mean_batch_size']:.1f}, "
        f"undisturbed {together['undisturbed_images_per_s']:.1f}; "
        f"{together['generator_cpu_ms_per_request']:.2f} ms of the generator's CPU a request"
    ]
    if together["generator_shares_cpus"]:
        lines.append("generator and server share CPUs: the engine's time under load has what it lost to the generator")
    if together["undisturbed_ratio"] > 1:
        lines.append("the engine undisturbed was slower than under load: something else ran, measure again")
    return lines


def _memory(found: Mapping[str, Any]) -> str:
    if "not_measured" in found:
        return f"memory wasn't measured: {found['not_measured']}"
    marks = "".join(f"{resident:.0f} after {int(answers):,}, " for answers, resident in found["after_mb"].items())
    return (
        f"resident MB over {found['requests']:,} requests: {found['at_start_mb']:.0f} when ready, {marks}"
        f"{found['most_mb']:.0f} at most; first third {found['first_third_mb']:.1f}, last third "
        f"{found['last_third_mb']:.1f}, drift {found['drift_mb']:+.1f}"
    )
