"""What a batch's size gives and costs: images a second against the time that a late request may wait for all of them.

Why `SKIPVIT_MAX_BATCH_SIZE` and `SKIPVIT_MAX_BATCH_WORK_S` are what they are; `export.execution` prints it. It knows
no session: it times what it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.parity import Infer

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MIN_ROUNDS = 6


class Row(NamedTuple):
    """Batches of one size, at one pair of input size and threshold."""

    size_px: int
    threshold: float
    batch_size: int
    batch_ms: float  # median
    images_s: float  # in a row of such batches


def measure(
    infer: Infer,
    images: Mapping[int, NDArray[np.uint8]],
    thresholds: Sequence[float],
    batch_sizes: Sequence[int],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time every batch size at every threshold on images (n, S, S, 3) of each size, for about `seconds` each.

    All take turns, each round in an order of its own, so that none always finds what the same one leaves behind.
    """
    kinds = list(product(images, thresholds, batch_sizes))
    times: dict[tuple[int, float, int], list[float]] = {kind: [] for kind in kinds}
    orders = np.random.default_rng(0)
    end = clock() + seconds * len(kinds)
    for turn in range(10_000):
        for index in orders.permutation(len(kinds)):
            size_px, threshold, batch_size = kinds[index]
            pixels, limit = images[size_px], np.full(batch_size, threshold, np.float32)
            chosen = pixels[np.arange(turn * batch_size, (turn + 1) * batch_size) % len(pixels)]
            for _ in range(2):  # the second one counts: caches are then as they would be under load
                start = clock()
                infer(chosen, limit)
                taken_s = clock() - start
            times[kinds[index]].append(taken_s)
        if turn + 1 >= MIN_ROUNDS and clock() > end:
            break
    medians_s = {kind: float(np.median(taken)) for kind, taken in times.items()}
    return [Row(*kind, round(1000 * median, 2), round(kind[2] / median, 1)) for kind, median in medians_s.items()]


def table(rows: Sequence[Row]) -> str:
    """As Markdown: a row for each batch size, a column for each pair of input size and threshold."""
    columns = dict.fromkeys((row.size_px, row.threshold) for row in rows)
    heads = " | ".join(f"{size_px} px at {threshold:g}" for size_px, threshold in columns)
    lines = [f"| images a second (time of a batch) | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for batch_size in dict.fromkeys(row.batch_size for row in rows):
        # rows come column by column, as `measure` has them
        cells = [f"{row.images_s:.0f} ({row.batch_ms:.0f} ms)" for row in rows if row.batch_size == batch_size]
        lines.append(f"| batch {batch_size} | {' | '.join(cells)} |")
    return "\n".join(lines)
