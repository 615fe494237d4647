"""PURE: which runs make up a sweep, in what order, and how long each may take. It knows no server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["capacity", "steady", "ramp"]
RAMP_FROM = 0.25  # a ramp's first rate over its mean
WEIGHTS: dict[Kind, float] = {"capacity": 0.5, "steady": 1.0, "ramp": 3.0}  # seconds, relative to a steady run
CELL_OVERHEAD_S = 1.0  # encoding, reading answers, waiting for the queue to empty
SERVICE_OVERHEAD_S = 8.0  # start and drain
MIN_SECONDS = 3.0  # of a steady run


class Rate(NamedTuple):
    """An arrival rate: in requests a second, or as a multiple of the reference's capacity."""

    value: float
    relative: bool

    def rps(self, capacity_rps: float) -> float:
        """In requests a second."""
        return self.value * capacity_rps if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value:g}{'x' if self.relative else ''}"


def parse_rate(text: str) -> Rate:
    """`0.8x` of the capacity, or `20` requests a second.

    Raises:
        ValueError: no number above 0.
    """
    value = float(text.strip().removesuffix("x"))
    if not 0 < value < float("inf"):
        raise ValueError(f"a rate is above 0, like 20 or 0.8x, not {text!r}")
    return Rate(value, text.strip().endswith("x"))


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    kind: Kind
    query: str  # the operating point
    adaptive: bool  # whether the service may lower compute under load
    rate: Rate | None = None  # mean arrival rate; None in a closed loop

    @property
    def name(self) -> str:
        """Of its file."""
        parts = [self.kind, re.sub(r"[^0-9A-Za-z.]+", "-", self.query), str(self.rate or "")]
        return "_".join(part for part in parts if part) + ("_adaptive" if self.adaptive else "")


class Spec(NamedTuple):
    """What a sweep was asked to measure."""

    points: tuple[str, ...]  # the first one is the reference: its capacity is 1x
    rates: tuple[Rate, ...]
    adaptive_point: str  # measured with adaptive compute on, and on the ramp with it off and on
    ramp: Rate | None  # mean rate of the ramp; None: no ramp
    adaptive: bool  # whether the service can be asked for both


def cells(spec: Spec) -> list[Cell]:
    """All runs, those with fixed compute first; the reference's capacity is the very first."""
    planned = [Cell("capacity", query, False) for query in spec.points]
    planned += [Cell("steady", query, False, rate) for rate in spec.rates for query in spec.points]
    if spec.ramp:
        planned += [Cell("ramp", spec.adaptive_point, False, spec.ramp)]
    if spec.adaptive:
        planned += [Cell("steady", spec.adaptive_point, True, rate) for rate in spec.rates]
    if spec.adaptive and spec.ramp:
        planned += [Cell("ramp", spec.adaptive_point, True, spec.ramp)]
    return planned


def seconds_each(planned: Sequence[Cell], minutes: float, restarts: int) -> float:
    """Of a steady run, so that the whole takes about `minutes`.

    Raises:
        ValueError: not even MIN_SECONDS each.
    """
    overhead_s = CELL_OVERHEAD_S * len(planned) + SERVICE_OVERHEAD_S * restarts
    seconds = (60 * minutes - overhead_s) / sum(WEIGHTS[cell.kind] for cell in planned)
    if seconds < MIN_SECONDS:
        raise ValueError(
            f"{len(planned)} runs don't fit into {minutes:g} minutes: fewer --rates or points, or more time"
        )
    return round(seconds, 1)


def duration_s(cell: Cell, seconds: float) -> float:
    """Of one run."""
    return round(WEIGHTS[cell.kind] * seconds, 2)
