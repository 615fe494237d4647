"""Kubernetes' horizontal pod autoscaler as documented, and pods that answer as recorded ones did. Pure.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/: desired = ceil(pods x value / target), no
change within 10 % of the target, the largest of all metrics, then the windows and policies of `spec.behavior`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

TOLERANCE_RATIO = 0.1
SYNC_S = 15
START_S = 30  # from the decision to the first request: scheduling, a pulled image, loading, warm-up, probes
_METRICS = ("skipvit_pending_work_seconds", "skipvit_engine_busy_ratio")


class Moment(NamedTuple):
    """What the simulation shows at one time."""

    time_s: int
    pods: int  # that take traffic
    pending_s: float  # a pod
    busy_ratio: float  # a pod


class Recording:
    """What a pod's two metrics were at each rate that it was offered, mean over the recorded time."""

    def __init__(self, file: Path, *, shed_s: float) -> None:
        self._shed_s = shed_s  # a pod refuses what would make it hold more work
        steps: dict[float, list[dict[str, str]]] = {}
        with file.open() as lines:
            for row in csv.DictReader(lines):
                steps.setdefault(float(row["offered_rps"]), []).append(row)
        self.rates_rps = sorted(steps)
        means = {
            name: [fmean(float(row[name]) for row in steps[rate]) for rate in self.rates_rps]
            for name in ("pending_work_s", "busy_ratio")
        }
        # More load is never less queue, and an image in a larger batch never takes longer than in a smaller one: where
        # a recording says so, the machine had something else to do.
        self._pending_s = list(accumulate(means["pending_work_s"], max))
        seconds_each = [busy / rate for busy, rate in zip(means["busy_ratio"], self.rates_rps, strict=True)]
        cheapest = accumulate(seconds_each, min)
        busy = (min(1.0, rate * each_s) for rate, each_s in zip(self.rates_rps, cheapest, strict=True))
        self._busy_ratio = list(accumulate(busy, max))

    def at(self, rate_rps: float) -> tuple[float, float]:
        """Pending work and busy share of a pod that is offered this rate; between recorded rates, linear."""
        pending_s = np.interp(rate_rps, [0.0, *self.rates_rps], [0.0, *self._pending_s])
        busy_ratio = np.interp(rate_rps, [0.0, *self.rates_rps], [0.0, *self._busy_ratio])
        return min(float(pending_s), self._shed_s), float(busy_ratio)

    def rate_at(self, busy_ratio: float) -> float:
        """The rate at which a pod is busy for this share of time."""
        return float(np.interp(busy_ratio, [0.0, *self._busy_ratio], [0.0, *self.rates_rps]))


class Autoscaler:
    """One HorizontalPodAutoscaler, by its rendered `spec`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._min: int = spec["minReplicas"]
        self._max: int = spec["maxReplicas"]
        targets = {
            item["pods"]["metric"]["name"]: float(item["pods"]["target"]["averageValue"]) for item in spec["metrics"]
        }
        self._targets = [targets[name] for name in _METRICS if name in targets]
        self._up, self._down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
        self._wanted: list[tuple[int, int]] = []  # time and recommendation
        self._changes: list[tuple[int, int]] = []  # time and pods added

    def decide(self, now_s: int, pods: int, measured: list[float]) -> int:
        """How many pods there shall be, from the metrics' means over the pods."""
        ratios = [value / target for value, target in zip(measured, self._targets, strict=False)]
        steady = [pods if abs(ratio - 1) <= TOLERANCE_RATIO else math.ceil(pods * ratio - 1e-9) for ratio in ratios]
        self._wanted.append((now_s, max(steady)))
        lowest = min(self._since(self._wanted, now_s, self._up["stabilizationWindowSeconds"]))
        highest = max(self._since(self._wanted, now_s, self._down["stabilizationWindowSeconds"]))
        stable = lowest if lowest > pods else min(pods, highest)
        limited = self._limit(now_s, pods, stable)
        chosen = min(self._max, max(self._min, limited))
        if chosen != pods:
            self._changes.append((now_s, chosen - pods))
        return chosen

    def _limit(self, now_s: int, pods: int, wanted: int) -> int:
        if wanted > pods:
            return min(wanted, max(self._reach(now_s, pods, policy, up=True) for policy in self._up["policies"]))
        return max(wanted, min(self._reach(now_s, pods, policy, up=False) for policy in self._down["policies"]))

    def _reach(self, now_s: int, pods: int, policy: dict[str, Any], *, up: bool) -> int:
        """The count that one policy allows, from the count at the start of its period."""
        lately = self._since(self._changes, now_s, policy["periodSeconds"] - 1)
        start = pods - sum(change for change in lately if (change > 0) == up)
        change: int = policy["value"] if policy["type"] == "Pods" else math.ceil(start * policy["value"] / 100)
        return start + change if up else start - change

    @staticmethod
    def _since(events: list[tuple[int, int]], now_s: int, window_s: int) -> list[int]:
        return [value for time_s, value in events if now_s - time_s <= window_s]


def simulate(
    spec: dict[str, Any], recording: Recording, load_rps: Callable[[int], float], duration_s: int, pods: int
) -> list[Moment]:
    """Play a load against pods that behave as recorded and an autoscaler that looks every 15 s at a minute's mean."""
    autoscaler = Autoscaler(spec)
    started_s = [-START_S] * pods  # of each pod
    moments: list[Moment] = []
    for now_s in range(0, duration_s, SYNC_S):
        ready = sum(now_s - start_s >= START_S for start_s in started_s)
        moments.append(Moment(now_s, ready, *recording.at(load_rps(now_s) / ready)))
        lately = moments[-(60 // SYNC_S) :]
        measured = [fmean(moment.pending_s for moment in lately), fmean(moment.busy_ratio for moment in lately)]
        wanted = autoscaler.decide(now_s, len(started_s), measured)
        started_s = started_s[:wanted] + [now_s] * (wanted - len(started_s))
    return moments


def turns(moments: list[Moment]) -> int:
    """How often the number of pods changed its direction."""
    steps = [b.pods - a.pods for a, b in zip(moments, moments[1:], strict=False) if a.pods != b.pods]
    return sum((a > 0) != (b > 0) for a, b in zip(steps, steps[1:], strict=False))
