"""From what the caller wants to spend to input size, threshold and looks. Pure; knows the calibration, no HTTP.

The manifest's tables hold the mean shares of the full dense MACs and of the dense model's time, and the accuracy: for
pairs of input size and threshold, and for two looks at an image by the probability that is enough. Between two
neighbours of one size all are taken as linear, and so is the threshold, or the probability, that meets a share. Callers
buy MACs, which mean the same everywhere; load and deadlines are about time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from service.artifact import CalibrationPoint, Manifest, Precision, SecondLookPoint
from service.errors import BadParameter
from service.settings import PresetName


class Choice(NamedTuple):
    """What one request runs with: a pair for the engine, and when an image is looked at again, and how."""

    size_px: int
    threshold: float
    sure: float = 0.0  # least probability of the first label that is enough; 0: one look
    again_px: int = 0  # of the second look; 0: the full size


class Expected(NamedTuple):
    """What an image is expected to take, as shares of the dense model's at the full size, and to score."""

    macs_ratio: float
    time_ratio: float
    accuracy: float
    looked_again: float = 0.0  # of the images


def time_ratio(macs_ratio: float, threshold: float, packing: float) -> float:
    """Of the dense model's time: as the MACs say, and what packing takes beside them; at threshold 0 no gate runs."""
    return round(macs_ratio + (packing if threshold > 0 else 0.0), 4)


def timed(manifest: Manifest, precision: Precision) -> Manifest:
    """The manifest with the table's times as they are in `precision`; as it is where that was never measured."""
    if precision not in manifest.packing:
        return manifest

    def at(point: CalibrationPoint) -> CalibrationPoint:
        dense_ratio = manifest.graph(point.size_px).dense_macs / manifest.full.dense_macs
        time = time_ratio(point.macs_ratio.mean, point.threshold, manifest.packing[precision] * dense_ratio)
        return point.model_copy(update={"time_ratio": time})

    fields = {name: getattr(manifest, name) for name in Manifest.model_fields}  # a copy would have the old `points`
    return Manifest(**fields | {"calibration": tuple(at(point) for point in manifest.calibration)})


def second_of(manifest: Manifest, choice: Choice) -> Choice | None:
    """What a second look runs with: at a larger size than the first; None where there is none."""
    again_px = choice.again_px or manifest.full.size_px
    return Choice(again_px, choice.threshold) if choice.sure and again_px > choice.size_px else None


def expected(manifest: Manifest, choice: Choice, *, looks_ratio: float = 1.0) -> Expected:
    """What the tables say of a choice, on average, where `looks_ratio` times as many are looked at again as they say.

    Linear between the table's thresholds, the nearest one's beyond them; without a table all patches are counted. Of
    two looks at other thresholds than 0 the accuracy isn't known.
    """
    once, second = _expected_once(manifest, *choice[:2]), second_of(manifest, choice)
    if second is None:
        return once
    twice = _expected_once(manifest, *second[:2])
    again, accuracy = _looked_again(manifest, choice.size_px, choice.sure, second.size_px)
    again = min(1.0, looks_ratio * again)
    return Expected(
        once.macs_ratio + again * twice.macs_ratio,
        once.time_ratio + again * twice.time_ratio,
        math.nan if choice.threshold else accuracy,
        again,
    )


def cheaper(
    manifest: Manifest, choice: Choice, share: float, *, size_px: int | None = None, looks_ratio: float = 1.0
) -> Choice:
    """The most accurate choice within the share `share` of the full dense time, or `choice` if that takes no longer.

    Args:
        size_px: the only input size to look at, for images that come at a size; None looks at all, and twice as well.
        looks_ratio: so many times as many images are looked at again as the tables say.
    """
    lines = _lines_of_one_look(manifest, _time, size_px)
    if size_px is None:
        lines += _lines_of_two_looks(manifest, looks_ratio)
    if not lines:
        return choice
    found = _best(lines, share)
    theirs, ours = (expected(manifest, each, looks_ratio=looks_ratio).time_ratio for each in (choice, found))
    return found if ours < theirs else choice


def dominates(manifest: Manifest, choice: Choice, other: Choice) -> bool:
    """Whether one look at `choice` may stand for one at `other`: it spends no less and scores no lower."""
    if choice.size_px == other.size_px:
        return choice.threshold <= other.threshold
    ours, theirs = _known(manifest, *choice[:2]), _known(manifest, *other[:2])
    if ours is None or theirs is None:
        return False
    return ours.macs_ratio >= theirs.macs_ratio and ours.accuracy >= theirs.accuracy


def _expected_once(manifest: Manifest, size_px: int, threshold: float) -> Expected:
    known = _known(manifest, size_px, threshold)
    if known is not None:
        return known
    dense = manifest.graph(size_px).dense_macs / manifest.full.dense_macs
    return Expected(dense, dense, math.nan)


def _known(manifest: Manifest, size_px: int, threshold: float) -> Expected | None:
    """The table at a pair, interpolated; None if it says nothing about the size."""
    points = manifest.points.get(size_px)
    if points is None:
        return None
    place = bisect_right(points, threshold, key=lambda point: point.threshold)
    lower, upper = points[max(place - 1, 0)], points[min(place, len(points) - 1)]
    width = upper.threshold - lower.threshold
    share = (threshold - lower.threshold) / width if width > 0 else 0.0

    def between(value: Callable[[CalibrationPoint], float]) -> float:
        return value(lower) + share * (value(upper) - value(lower))

    return Expected(between(_macs), between(_time), between(lambda point: point.accuracy))


def _looked_again(manifest: Manifest, size_px: int, sure: float, again_px: int) -> tuple[float, float]:
    """The share of images that a second look is due for, and the accuracy of both at threshold 0.

    Linear between the table's probabilities, nobody at 0 and everybody at 1.
    """
    found = manifest.looks.get((size_px, again_px), ())
    place = bisect_right(found, sure, key=lambda point: point.sure)

    def row(place: int) -> tuple[float, float, float]:
        if 0 <= place < len(found):
            return found[place].sure, found[place].looked_again, found[place].accuracy
        end, px = (0.0, size_px) if place < 0 else (1.0, again_px)
        return end, end, _expected_once(manifest, px, 0.0).accuracy

    lower, upper = row(place - 1), row(place)
    share = (sure - lower[0]) / (upper[0] - lower[0]) if upper[0] > lower[0] else 1.0
    return lower[1] + share * (upper[1] - lower[1]), lower[2] + share * (upper[2] - lower[2])


def choose(
    manifest: Manifest,
    *,
    threshold: float | None = None,
    compute: float | None = None,
    preset: PresetName | None = None,
    size_px: int | None = None,
    sure: float | None = None,
    default_preset: PresetName = "balanced",
) -> Choice:
    """What a request's parameters stand for.

    `threshold` runs at `size_px` or at the full size. `compute` finds the best pair, among those of `size_px` if that
    is given. `preset` is a choice by name. With none of the three the default preset answers; `size_px` alone keeps the
    default preset's threshold. `sure` is as given, else 0, but for a preset that has its own.

    Raises:
        BadParameter: parameters that exclude each other, a size the bundle doesn't have, or no table to solve with.
    """
    given = {"threshold": threshold, "compute": compute, "preset": preset}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise BadParameter(f"{' and '.join(named)} exclude each other: give one of threshold, compute and preset")
    if size_px is not None and size_px not in manifest.sizes_px:
        raise BadParameter(f"size: {size_px} is not one of {_in_words(manifest)}")
    if threshold is not None:
        return Choice(size_px or manifest.full.size_px, threshold, sure or 0.0)
    if compute is not None:
        return solve(manifest, compute, size_px=size_px)._replace(sure=sure or 0.0)
    if preset is not None and size_px is not None:
        raise BadParameter("size and preset exclude each other: a preset names its own size")
    found = manifest.presets.get(preset or default_preset)
    if found is None:
        raise BadParameter(f"preset: {manifest.name} has no {preset!r}, only {', '.join(manifest.presets)}")
    if size_px is not None:
        return Choice(size_px, found.threshold, sure or 0.0)
    return Choice(found.size_px, found.threshold, found.sure if sure is None else sure)


def look_again_at(manifest: Manifest, choice: Choice, again_px: int) -> Choice:
    """The same choice with its second look at another size than the full one.

    Raises:
        BadParameter: a size the bundle doesn't have or that isn't larger than the first one, or one look is all.
    """
    if again_px not in manifest.sizes_px:
        raise BadParameter(f"again: {again_px} is not one of {_in_words(manifest)}")
    if not choice.sure:
        raise BadParameter("again is the input size of a second look: say with sure when there is to be one")
    if again_px <= choice.size_px:
        raise BadParameter(f"again: {again_px} px isn't larger than the first look's {choice.size_px} px")
    return choice._replace(again_px=again_px)


def _in_words(manifest: Manifest) -> str:
    return ", ".join(str(size_px) for size_px in manifest.sizes_px)


def solve(manifest: Manifest, compute: float, *, size_px: int | None = None) -> Choice:
    """The most accurate pair that spends at most the share `compute` of the full dense MACs, on average, in one look.

    Of equally accurate ones the dearer; if none is cheap enough, the cheapest.

    Raises:
        BadParameter: the bundle has no calibration for what is asked.
    """
    lines = _lines_of_one_look(manifest, _macs, size_px)
    if not lines:
        raise BadParameter("compute: this model has no calibration table for it; use threshold")
    return _best(lines, compute)


def _macs(point: CalibrationPoint) -> float:
    return point.macs_ratio.mean


def _time(point: CalibrationPoint) -> float:
    return point.time_ratio


class _Candidate(NamedTuple):
    accuracy: float
    cost: float
    choice: Choice


_Line = list[_Candidate]  # neighbours, between which all is linear


def _lines_of_one_look(
    manifest: Manifest, cost: Callable[[CalibrationPoint], float], size_px: int | None
) -> list[_Line]:
    return [
        _rising([_Candidate(point.accuracy, cost(point), Choice(px, point.threshold)) for point in reversed(points)])
        for px, points in manifest.points.items()
        if size_px in (None, px)
    ]


def _lines_of_two_looks(manifest: Manifest, looks_ratio: float) -> list[_Line]:
    once = {px: _expected_once(manifest, px, 0.0).time_ratio for px in manifest.sizes_px}

    def candidate(point: SecondLookPoint) -> _Candidate:  # a row of the table, so nothing is between others
        again = min(1.0, looks_ratio * point.looked_again)
        choice = Choice(point.size_px, 0.0, point.sure, point.again_px)
        return _Candidate(point.accuracy, round(once[choice.size_px] + again * once[choice.again_px], 4), choice)

    return [_rising([candidate(point) for point in points]) for points in manifest.looks.values()]


def _rising(line: _Line) -> _Line:
    """A line from where most is left out, on which accuracy never falls: where it was measured to, that is noise.

    Isotonic regression, by pooling adjacent violators; else the best of a few noisy points would hide all dearer ones.
    """
    pools: list[tuple[float, int]] = []  # mean accuracy, points
    for candidate in line:
        pools.append((candidate.accuracy, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, n), (other, m) = pools.pop(), pools.pop()
            pools.append(((one * n + other * m) / (n + m), n + m))
    means = (mean for mean, points in pools for _ in range(points))
    return [candidate._replace(accuracy=mean) for candidate, mean in zip(line, means, strict=True)]


def _best(lines: list[_Line], limit: float) -> Choice:
    """The most accurate choice within a cost, the cheapest if none is; of equally accurate ones the dearer."""
    candidates = [candidate for line in lines for candidate in _within(line, limit)]
    if not candidates:
        return min((candidate for line in lines for candidate in line), key=lambda candidate: candidate.cost).choice
    return max(candidates).choice


def _within(line: _Line, limit: float) -> Iterator[_Candidate]:
    yield from (candidate for candidate in line if candidate.cost <= limit)
    for one, next_one in pairwise(line):
        cheap, dear = sorted((one, next_one), key=lambda candidate: candidate.cost)
        if cheap.cost < limit < dear.cost:
            share = (limit - cheap.cost) / (dear.cost - cheap.cost)
            threshold, sure = (a + share * (b - a) for a, b in zip(cheap.choice[1:3], dear.choice[1:3], strict=True))
            accuracy = cheap.accuracy + share * (dear.accuracy - cheap.accuracy)
            yield _Candidate(accuracy, limit, cheap.choice._replace(threshold=threshold, sure=sure))
