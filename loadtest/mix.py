"""What is asked for: operating points, formats, sizes, deadlines and impatient callers, drawn before the run. PURE.

An operating point is a query string of `/v1/classify`: `threshold=0.4`, `preset=economy`, `compute=0.5`,
`size=84&threshold=0.25`, `size=70&threshold=0&sure=0.5`. It knows no HTTP beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import Seconds

Value = TypeVar("Value")
Weighted = tuple[tuple[Value, float], ...]
PARAMETERS = {"threshold", "preset", "compute", "size", "sure", "again", "model", "degrade", "top_k"}
_NUMBERS = {"threshold", "compute", "sure"}


def point(text: str) -> str:
    """An operating point in its plainest form: parameters sorted, numbers without trailing zeros.

    Raises:
        ValueError: no query string, or a parameter that changes nothing a load test measures.
    """
    pairs = []
    for part in text.strip().split("&"):
        name, equals, value = part.partition("=")
        if name not in PARAMETERS or not equals or not value:
            raise ValueError(f"{text!r} is no operating point: threshold=0.4, preset=economy, size=84&threshold=0.25")
        pairs.append((name, f"{float(value):g}" if name in _NUMBERS else value))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def weighted(text: str, kind: Callable[[str], Value]) -> Weighted[Value]:
    """`a:3,b:1` -> (("a", 0.75), ("b", 0.25)); a missing weight is 1.

    Raises:
        ValueError: a value or a weight that can't be read.
    """
    items = []
    for part in text.split(","):
        value, colon, weight = part.partition(":")
        items.append((kind(value.strip()), float(weight) if colon else 1.0))
    total = sum(weight for _, weight in items)
    if not total > 0 or any(weight < 0 for _, weight in items):
        raise ValueError(f"{text!r} needs weights above 0")
    return tuple((value, weight / total) for value, weight in items)


@dataclass(frozen=True)
class Mix:
    """Shares of what requests are like; every share is a probability."""

    points: Weighted[str] = (("threshold=0", 1.0),)
    formats: Weighted[str] = (("original", 1.0),)
    sides_px: Weighted[int | None] = ((None, 1.0),)  # longer side the image is enlarged or shrunk to
    deadlines_ms: Weighted[int | None] = ((None, 1.0),)
    cancel_ratio: float = 0.0  # share of callers that hang up
    cancel_after_s: float = 0.05  # when they do

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.cancel_ratio <= 1 or self.cancel_after_s <= 0:
            raise ValueError("the cancel rate must be between 0 and 1, and the time above 0")


class Plan(NamedTuple):
    """Every request of a run, drawn in advance; N requests, indices into the mix's and the images' lists."""

    due_s: Seconds | None  # (N,) of an open loop; None: as soon as a caller is free, over and over
    image: NDArray[np.int64]  # (N,)
    point: NDArray[np.int64]
    format: NDArray[np.int64]
    side: NDArray[np.int64]
    deadline: NDArray[np.int64]
    cancel: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image)

    def shard(self, index: int, count: int) -> Plan:
        """Every `count`-th request from `index` on: the shares of all workers together are the whole plan."""
        mine = slice(index, None, count)
        due_s = None if self.due_s is None else self.due_s[mine]
        image, point, kind = self.image[mine], self.point[mine], self.format[mine]
        return Plan(due_s, image, point, kind, self.side[mine], self.deadline[mine], self.cancel[mine])


def draw(mix: Mix, images: int, requests: int, seed: int, due_s: Seconds | None = None) -> Plan:
    """What each of `requests` requests is like. Images come in shuffled rounds, so each is used about equally often.

    Each column has a random stream of its own: the same seed sends the same images whatever the mix.
    """
    streams = iter(np.random.default_rng(seed).spawn(6))

    def pick(shares: Weighted[Value]) -> NDArray[np.int64]:
        return next(streams).choice(len(shares), size=requests, p=[weight for _, weight in shares])

    order = next(streams)
    rounds = [order.permutation(images) for _ in range(-(-requests // images))]
    image = np.concatenate(rounds)[:requests] if rounds else np.zeros(0, np.int64)
    columns = (pick(mix.points), pick(mix.formats), pick(mix.sides_px), pick(mix.deadlines_ms))
    return Plan(due_s, image, *columns, next(streams).random(requests) < mix.cancel_ratio)


def parse_shard(text: str) -> tuple[int, int]:
    """`0/4` -> (0, 4).

    Raises:
        ValueError: not of this form, or the index isn't below the count.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"a shard is INDEX/COUNT from 0/COUNT on, like 0/4, not {text!r}")
    return int(index), int(count)
