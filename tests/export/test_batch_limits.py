"""Every batch size is timed as often as any other, on images of its size, and what counts is the warm run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export import batch_limits
from export.batch_limits import Row
from service.engine import EngineOutput

IMAGES = {8: np.zeros((3, 8, 8, 3), np.uint8), 4: np.zeros((3, 4, 4, 3), np.uint8)}
for _images in IMAGES.values():
    _images[:] = np.arange(3)[:, None, None, None]  # each image has its number as its colour
NOTHING = EngineOutput(np.zeros((0, 0), np.float32), np.zeros((0, 0, 0), np.bool_))


class Clocked:
    """An engine whose clock goes on by 10 ms a run and 1 ms a pixel of width, twice as much where a kind is new."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.runs: list[tuple[int, float, int]] = []
        self.seen: set[int] = set()  # first images of batches

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        assert len(set(threshold)) == 1
        assert len(threshold) == len(images)
        kind = (images.shape[1], round(float(threshold[0]), 3), len(images))
        warm = bool(self.runs) and self.runs[-1] == kind
        self.now_s += (0.010 + 0.001 * images.shape[1] * len(images) * (1 - threshold[0])) * (1 if warm else 2)
        self.runs.append(kind)
        self.seen.add(int(images[0, 0, 0, 0]))
        return NOTHING


def test_batches_take_turns_and_their_warm_runs_count() -> None:
    engine = Clocked()
    rows = batch_limits.measure(engine.infer, IMAGES, (0.0, 0.5), (1, 5), 0.0, clock=lambda: engine.now_s)
    assert rows == [
        Row(8, 0.0, 1, 18.0, 55.6),
        Row(8, 0.0, 5, 50.0, 100.0),
        Row(8, 0.5, 1, 14.0, 71.4),
        Row(8, 0.5, 5, 30.0, 166.7),
        Row(4, 0.0, 1, 14.0, 71.4),
        Row(4, 0.0, 5, 30.0, 166.7),
        Row(4, 0.5, 1, 12.0, 83.3),
        Row(4, 0.5, 5, 20.0, 250.0),
    ]
    turns = engine.runs[::2]
    assert turns == engine.runs[1::2]
    rounds = [turns[start : start + len(rows)] for start in range(0, len(turns), len(rows))]
    assert len(rounds) == batch_limits.MIN_ROUNDS
    assert all(sorted(each) == sorted(rounds[0]) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    assert engine.seen == {0, 1, 2}


def test_more_time_gives_more_rounds() -> None:
    engine = Clocked()
    batch_limits.measure(engine.infer, IMAGES, (0.0,), (1,), 1.0, clock=lambda: engine.now_s)
    assert 2.0 < engine.now_s < 2.0 + 3 * (0.018 + 0.014)  # a second for each kind, and what is left of a round
    assert len(engine.runs) > 4 * batch_limits.MIN_ROUNDS


def test_the_table_has_a_row_for_each_batch_size() -> None:
    rows = [Row(8, 0.0, 1, 18.0, 55.6), Row(8, 0.0, 5, 50.4, 99.2), Row(4, 0.3, 1, 12.0, 83.3), Row(4, 0.3, 5, 20, 250)]
    assert batch_limits.table(rows).splitlines() == [
        "| images a second (time of a batch) | 8 px at 0 | 4 px at 0.3 |",
        "|---|---|---|",
        "| batch 1 | 56 (18 ms) | 83 (12 ms) |",
        "| batch 5 | 99 (50 ms) | 250 (20 ms) |",
    ]
