"""From what the caller wants to spend to an input size and a threshold. Pure; knows the calibration table, no HTTP.

The table holds, for pairs of input size and threshold, the mean shares of the full dense MACs and of the dense model's
time, and the accuracy. Between two neighbouring thresholds of one size all are taken as linear, and so is the threshold
that meets a share. Callers buy MACs, which mean the same everywhere; load and deadlines are about time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from service.artifact import CalibrationPoint, Manifest
from service.errors import BadParameter
from service.settings import PresetName


class Choice(NamedTuple):
    """What the engine gets for one request."""

    size_px: int
    threshold: float


class Expected(NamedTuple):
    """What an image at one pair is expected to take, as shares of the dense model's at the full size, and to score."""

    macs_ratio: float
    time_ratio: float
    accuracy: float


def expected(manifest: Manifest, size_px: int, threshold: float) -> Expected:
    """What the table says of a pair, on average.

    Linear between the table's thresholds, the nearest one's beyond them; without a table all patches are counted.
    """
    known = _known(manifest, Choice(size_px, threshold))
    if known is not None:
        return known
    dense = manifest.graph(size_px).dense_macs / manifest.full.dense_macs
    return Expected(dense, dense, math.nan)


def cheaper(manifest: Manifest, choice: Choice, share: float, *, size_px: int | None = None) -> Choice:
    """The most accurate pair within the share `share` of the full dense time, or `choice` if that takes no longer.

    Args:
        size_px: the only input size to look at, for images that come at a size; None looks at all.
    """
    points = [point for point in manifest.calibration if size_px in (None, point.size_px)]
    if not points:
        return choice
    found = _best(points, share, _time)
    return found if expected(manifest, *found).time_ratio < expected(manifest, *choice).time_ratio else choice


def dominates(manifest: Manifest, choice: Choice, other: Choice) -> bool:
    """Whether an answer at `choice` may stand for one at `other`: it spends no less and scores no lower."""
    if choice.size_px == other.size_px:
        return choice.threshold <= other.threshold
    ours, theirs = _known(manifest, choice), _known(manifest, other)
    if ours is None or theirs is None:
        return False
    return ours.macs_ratio >= theirs.macs_ratio and ours.accuracy >= theirs.accuracy


def _known(manifest: Manifest, choice: Choice) -> Expected | None:
    """The table at a pair, interpolated; None if it says nothing about the size."""
    found = [point for point in manifest.calibration if point.size_px == choice.size_px]
    points = sorted(found, key=lambda point: point.threshold)
    if not points:
        return None
    place = bisect_right(points, choice.threshold, key=lambda point: point.threshold)
    lower, upper = points[max(place - 1, 0)], points[min(place, len(points) - 1)]
    width = upper.threshold - lower.threshold
    share = (choice.threshold - lower.threshold) / width if width > 0 else 0.0

    def between(value: Callable[[CalibrationPoint], float]) -> float:
        return value(lower) + share * (value(upper) - value(lower))

    return Expected(between(_macs), between(_time), between(lambda point: point.accuracy))


class _Candidate(NamedTuple):
    accuracy: float
    cost: float
    choice: Choice


def choose(
    manifest: Manifest,
    *,
    threshold: float | None = None,
    compute: float | None = None,
    preset: PresetName | None = None,
    size_px: int | None = None,
    default_preset: PresetName = "balanced",
) -> Choice:
    """The input size and threshold that a request's parameters stand for.

    `threshold` runs at `size_px` or at the full size. `compute` finds the best pair, among those of `size_px` if that
    is given. `preset` is a pair by name. With none of the three the default preset answers; `size_px` alone keeps the
    default preset's threshold.

    Raises:
        BadParameter: parameters that exclude each other, a size the bundle doesn't have, or no table to solve with.
    """
    given = {"threshold": threshold, "compute": compute, "preset": preset}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise BadParameter(f"{' and '.join(named)} exclude each other: give one of threshold, compute and preset")
    if size_px is not None and size_px not in manifest.sizes_px:
        raise BadParameter(f"size: {size_px} is not one of {', '.join(str(size) for size in manifest.sizes_px)}")
    if threshold is not None:
        return Choice(size_px or manifest.full.size_px, threshold)
    if compute is not None:
        return solve(manifest, compute, size_px=size_px)
    if preset is not None and size_px is not None:
        raise BadParameter("size and preset exclude each other: a preset names its own size")
    found = manifest.presets.get(preset or default_preset)
    if found is None:
        raise BadParameter(f"preset: {manifest.name} has no {preset!r}, only {', '.join(manifest.presets)}")
    return Choice(size_px or found.size_px, found.threshold)


def solve(manifest: Manifest, compute: float, *, size_px: int | None = None) -> Choice:
    """The most accurate pair that spends at most the share `compute` of the full dense MACs, on average.

    Of equally accurate ones the dearer; if none is cheap enough, the cheapest.

    Raises:
        BadParameter: the bundle has no calibration for what is asked.
    """
    points = [point for point in manifest.calibration if size_px in (None, point.size_px)]
    if not points:
        raise BadParameter("compute: this model has no calibration table for it; use threshold")
    return _best(points, compute, _macs)


def _macs(point: CalibrationPoint) -> float:
    return point.macs_ratio.mean


def _time(point: CalibrationPoint) -> float:
    return point.time_ratio


def _best(points: list[CalibrationPoint], share: float, cost: Callable[[CalibrationPoint], float]) -> Choice:
    candidates = list(_within(points, share, cost))
    if not candidates:
        cheapest = min(points, key=cost)
        return Choice(cheapest.size_px, cheapest.threshold)
    return max(candidates).choice


def _within(
    points: list[CalibrationPoint], limit: float, cost: Callable[[CalibrationPoint], float]
) -> Iterator[_Candidate]:
    for point in points:
        if cost(point) <= limit:
            yield _Candidate(point.accuracy, cost(point), Choice(point.size_px, point.threshold))
    by_threshold = sorted(points, key=lambda point: (point.size_px, point.threshold))
    for lower, upper in pairwise(by_threshold):
        if lower.size_px == upper.size_px and cost(upper) < limit < cost(lower):
            share = (cost(lower) - limit) / (cost(lower) - cost(upper))
            threshold = lower.threshold + share * (upper.threshold - lower.threshold)
            accuracy = lower.accuracy + share * (upper.accuracy - lower.accuracy)
            yield _Candidate(accuracy, limit, Choice(lower.size_px, threshold))
