"""What a run of the engine will cost, before it runs: MACs from the calibration table, seconds from recent runs.

How many patches a gate keeps is known only once it ran, so both steps are predictions that learn: MACs are the table's
mean for the input size and threshold, corrected by what recent images of that size really took; seconds are a fixed
part plus a part for each MAC, fitted to recent runs with weights that fade. What packing takes beside the MACs of a
size, by the table, counts as MACs here. How many images are looked at again is predicted and learned likewise. It knows
no queue and reads no clock.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.artifact import Manifest
from service.budget import Choice, expected
from service.macs import used_macs

_FADE = 0.95  # of a run's weight, with every run that follows it
_CORRECTION_WEIGHT = 0.1  # of the latest run in the moving average of actual over predicted MACs
_CORRECTION_BOUNDS = (0.25, 4.0)
_LOOK_FADE = 0.98  # of an image's weight, with every image that follows it and may be looked at again
_IDLE_FADE = 0.998  # with every other one
_PRIOR_LOOKS = 5.0  # second looks as expected that weigh against what was seen
_REMEMBERED = 1024  # choices whose expected cost is kept
_DISTINCT = 1e-3  # relative variance of the runs' MACs below which a fixed part can't be told from a proportional one


class Cost(Protocol):
    """What the batcher asks before and tells after a run."""

    def macs(self, size_px: int, threshold: float) -> float:
        """MACs that one image will take, on average, packing among them."""
        ...

    def seconds(self, macs: float) -> float:
        """Seconds that a run of so many MACs will take; 0 before the first run was seen."""
        ...

    def learn(
        self, size_px: int, thresholds: NDArray[np.float32], kept: NDArray[np.bool_], seconds: float
    ) -> float | None:
        """Take in what a run took: thresholds (B,), kept (B, L, P). Returns actual over predicted seconds, if any."""
        ...


class CostModel:
    """Learns the cost of one model's runs on this machine."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._expected = lru_cache(_REMEMBERED)(partial(expected, manifest))  # asked several times a request
        self._corrections = dict.fromkeys(manifest.sizes_px, 1.0)
        self._fit = _FadingLine()
        self._looks_due = self._looks_expected = 0.0  # second looks, fading

    def macs(self, size_px: int, threshold: float) -> float:
        """MACs that one image will take, on average, packing among them."""
        macs, packing = self._parts(size_px, threshold)
        return macs + packing

    def seconds(self, macs: float) -> float:
        """Seconds that a run of so many MACs will take; 0 before the first run was seen."""
        return self._fit.at(macs)

    def learn(
        self, size_px: int, thresholds: NDArray[np.float32], kept: NDArray[np.bool_], seconds: float
    ) -> float | None:
        """Take in what a run took: thresholds (B,), kept (B, L, P). Returns actual over predicted seconds, if any."""
        predicted_macs = packing = 0.0
        for threshold, rows in Counter(thresholds.tolist()).items():
            each = self._parts(size_px, threshold)
            predicted_macs += rows * each[0]
            packing += rows * each[1]
        predicted_s = self.seconds(predicted_macs + packing)
        macs = float(used_macs(self._manifest.graph(size_px), kept.sum(axis=2), thresholds > 0).sum())
        low, high = _CORRECTION_BOUNDS
        correction = self._corrections[size_px]
        target = correction * macs / predicted_macs
        self._corrections[size_px] = min(max(correction + _CORRECTION_WEIGHT * (target - correction), low), high)
        self._fit.add(macs + packing, seconds)
        return seconds / predicted_s if predicted_s else None

    @property
    def looks_ratio(self) -> float:
        """So many times as many images are looked at again as the tables say; near 1 where few were seen of late."""
        return (self._looks_due + _PRIOR_LOOKS) / (self._looks_expected + _PRIOR_LOOKS)

    def later_macs(self, size_px: int, threshold: float, sure: float, again_px: int = 0) -> float:
        """MACs that an image's second look will take, on average over all images; 0 where there is one look."""
        share = min(1.0, self.looks_ratio * self._expected(Choice(size_px, threshold, sure, again_px)).looked_again)
        return share * self.macs(again_px or self._manifest.full.size_px, threshold) if share else 0.0

    def learn_looks(
        self, size_px: int, threshold: float, sure: float, again_px: int = 0, *, images: int, again: int
    ) -> None:
        """Take in that of so many images so many are looked at again; with one look, only that time passes."""
        share = self._expected(Choice(size_px, threshold, sure, again_px)).looked_again
        fade = (_LOOK_FADE if share else _IDLE_FADE) ** images
        self._looks_due = fade * self._looks_due + again
        self._looks_expected = fade * self._looks_expected + images * share

    def _parts(self, size_px: int, threshold: float) -> tuple[float, float]:
        """Predicted MACs of one image, and what packing takes beside them."""
        found, dense_macs = self._expected(Choice(size_px, threshold)), self._manifest.full.dense_macs
        macs = found.macs_ratio * self._corrections[size_px] * dense_macs
        return macs, (found.time_ratio - found.macs_ratio) * dense_macs


class _FadingLine:
    """Least squares of y = fixed + slope * x over points whose weights fade; both parts are at least 0."""

    def __init__(self) -> None:
        self._sums = (0.0,) * 5  # of 1, x, x*x, y, x*y; replaced as a whole, as the engine's thread reads it

    def add(self, x: float, y: float) -> None:
        """Take in a point."""
        n, sx, sxx, sy, sxy = (_FADE * each for each in self._sums)
        self._sums = n + 1, sx + x, sxx + x * x, sy + y, sxy + x * y

    def at(self, x: float) -> float:
        """The line's value; 0 before the first point."""
        n, sx, sxx, sy, sxy = self._sums
        if not sx:
            return 0.0
        spread = n * sxx - sx * sx
        slope = (n * sxy - sx * sy) / spread if spread > _DISTINCT * sx * sx else sy / sx
        slope = min(max(slope, 0.0), sy / sx)  # beyond sy / sx the fixed part would be negative
        return (sy - slope * sx) / n + slope * x
