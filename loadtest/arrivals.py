"""PURE: when requests are due, in seconds from the start, drawn before the run from a seed.

Every random kind is a Poisson process whose rate changes over time: unit arrivals are mapped through the inverse of
the cumulative rate, so a burst or a ramp keeps the mean rate that was asked for. It knows no HTTP and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["poisson", "constant", "burst", "ramp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Seconds = NDArray[np.float64]
_GRID = 4096  # pieces of the cumulative rate's curve


@dataclass(frozen=True)
class Arrivals:
    """An open-loop schedule's shape; `rate_rps` is the mean over the run."""

    kind: Kind = "poisson"
    rate_rps: float = 10.0
    duration_s: float = 30.0
    burst_ratio: float = 5.0  # burst: the rate inside bursts over the rate between them
    burst_every_s: float = 5.0  # burst: from one burst's start to the next
    burst_share: float = 0.2  # burst: share of the time spent in bursts
    ramp_from: float = 0.2  # ramp: the first rate over the mean; the last one is 2 minus that

    def __post_init__(self) -> None:
        """Refuse what has no schedule."""
        if not (self.rate_rps > 0 and self.duration_s > 0):
            raise ValueError(f"rate and duration must be above 0, not {self.rate_rps:g} and {self.duration_s:g}")
        if not 0 <= self.ramp_from <= 2:
            raise ValueError(f"a ramp starts at 0 to 2 times the mean rate, not {self.ramp_from:g}")
        if not (self.burst_ratio >= 1 and self.burst_every_s > 0 and 0 < self.burst_share < 1):
            raise ValueError("bursts need a ratio of at least 1, a period above 0 and a share between 0 and 1")


def schedule(arrivals: Arrivals, seed: int) -> Seconds:
    """Sorted offsets in [0, duration); the same for the same seed."""
    if arrivals.kind == "constant":
        number = np.arange(int(np.floor(arrivals.rate_rps * arrivals.duration_s + 1e-9)), dtype=np.float64)
        return number / arrivals.rate_rps
    at_s, cumulative = _cumulative(arrivals)
    expected = cumulative[-1]
    rng = np.random.default_rng(seed)
    count = int(expected + 10 * np.sqrt(expected) + 20)  # ten standard deviations: the cut below is never short
    unit = np.cumsum(rng.exponential(size=count))
    offsets: Seconds = np.interp(unit[unit < expected], cumulative, at_s)
    return offsets


def rate_at(arrivals: Arrivals, at_s: Seconds) -> Seconds:
    """The rate in requests a second at these times."""
    if arrivals.kind == "ramp":
        progress = at_s / arrivals.duration_s
        relative = arrivals.ramp_from + (2 - 2 * arrivals.ramp_from) * progress
    elif arrivals.kind == "burst":
        inside = (at_s % arrivals.burst_every_s) / arrivals.burst_every_s < arrivals.burst_share
        between = 1 / (arrivals.burst_share * arrivals.burst_ratio + 1 - arrivals.burst_share)
        relative = np.where(inside, arrivals.burst_ratio * between, between)
    else:
        relative = np.ones_like(at_s)
    return arrivals.rate_rps * relative


def _cumulative(arrivals: Arrivals) -> tuple[Seconds, Seconds]:
    """The expected number of requests until a time: (times, numbers), both rising."""
    edges = np.linspace(0, arrivals.duration_s, _GRID + 1)
    steps = rate_at(arrivals, (edges[1:] + edges[:-1]) / 2) * np.diff(edges)
    # The last run of bursts may be cut short: the mean is still what was asked for.
    steps *= arrivals.rate_rps * arrivals.duration_s / steps.sum()
    return edges, np.concatenate([[0.0], np.cumsum(steps)])


def trace(file: Path, rate_rps: float | None = None) -> Seconds:
    """Offsets from a file, one number of seconds a line (`#` starts a comment), from the first one on.

    Args:
        file: the trace; a CSV's first column is taken, and a first line that is no number is its header.
        rate_rps: replay faster or slower, at this mean rate; None keeps the trace's own.

    Raises:
        ValueError: no such file, or not two numbers in it.
    """
    try:
        lines = [line.split("#")[0].split(",")[0].strip() for line in file.read_text().splitlines()]
        rows = [line for line in lines if line]
        if rows and not _is_number(rows[0]):
            rows = rows[1:]
        at_s: Seconds = np.sort(np.array([float(row) for row in rows]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read as a trace, one number of seconds a line: {error}") from None
    if len(at_s) < 2 or not np.isfinite(at_s).all() or at_s[-1] == at_s[0]:
        raise ValueError(f"{file} is no trace: it needs two different times at least")
    at_s -= at_s[0]
    if rate_rps is not None:
        at_s *= (len(at_s) - 1) / rate_rps / at_s[-1]
    return at_s


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
