"""What an engine is: images and thresholds in, logits and kept patches out, in numpy. It knows no runtime, no queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.artifact import Precision
from service.errors import InferenceFailed


class EngineOutput(NamedTuple):
    """What one batch gave."""

    logits: NDArray[np.float32]  # (B, classes)
    kept: NDArray[np.bool_]  # (B, L, P): was the patch computed in the layer?


class Engine(Protocol):
    """Anything that classifies a batch of images of one size."""

    @property
    def precision(self) -> Precision:
        """Of the large matrix products."""
        ...

    @property
    def beside(self) -> Engine | None:
        """The same model for a run at the same time, on the same threads; None: one run at a time."""
        ...

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        """Classify `images` (B, H, W, 3) RGB, each row with its own score threshold (B,) in [0, 1]."""
        ...

    def terminate(self) -> None:
        """Ask a running `infer`, from another thread, to fail soon; without effect if none runs."""
        ...


def at_once(engine: Engine) -> list[Engine]:
    """The engines that may run at the same time: this one, and the one beside it if there is one."""
    return [engine] if engine.beside is None else [engine, engine.beside]


def check_output(output: EngineOutput, *, rows: int) -> None:
    """Raise InferenceFailed unless there is one finite row of logits and one row of kept patches for each image."""
    logits, kept = output
    if logits.ndim != 2 or kept.ndim != 3 or len(logits) != rows or len(kept) != rows:
        raise InferenceFailed(f"{rows} images gave logits {logits.shape} and kept {kept.shape}")
    if not np.isfinite(logits).all():
        raise InferenceFailed("the model gave logits that are not finite")


def warm_up(engine: Engine, sizes_px: Sequence[int], *, max_batch_size: int) -> None:
    """Run the largest batch of the largest size, then one image of every size, with gates and without.

    The first runs pay for allocation and kernel choice; here nobody waits for them. The largest one skips next to
    nothing, but meets every gate: no other run takes more memory. Two that may run at once have half of its rows each,
    which is ready sooner; two full batches of that size at once will take more, once.
    """

    def run(each: Engine, size_px: int, rows: int, threshold: float) -> None:
        output = each.infer(np.zeros((rows, size_px, size_px, 3), np.uint8), np.full(rows, threshold, np.float32))
        check_output(output, rows=rows)

    engines = at_once(engine)
    rows = math.ceil(max_batch_size / len(engines))
    with ThreadPoolExecutor(len(engines)) as threads:
        list(threads.map(lambda each: run(each, max(sizes_px), rows, 1e-6), engines))
    for size_px in sizes_px:
        for threshold in (0.5, 0.0):
            run(engine, size_px, 1, threshold)
