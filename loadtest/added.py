"""PURE: what a server adds to its engine, from the timings in its answers.

An answer tells the engine's seconds of its batch and how many images were in it. An image's share of them is the one
divided by the other, so the shares of all answers add up to the engine's busy time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

PHASES = ("decode", "queue", "inference", "total")


class Timed(NamedTuple):
    """One answer of `/v1/classify`; seconds. The service's own are not rounded."""

    latency_s: float  # the caller's
    decode_s: float
    queue_s: float
    inference_s: float  # of the whole batch
    total_s: float  # the server's
    batch_size: int

    @property
    def overhead_s(self) -> float:
        """What a caller who is alone waits beside the engine's time."""
        return self.latency_s - self.inference_s


def read(body: bytes, latency_s: float) -> Timed:
    """One answer; raises ValueError, KeyError or TypeError if it isn't one."""
    document = json.loads(body)
    decode, queue, inference, total = (float(document["timing_ms"][phase]) / 1e3 for phase in PHASES)
    return Timed(latency_s, decode, queue, inference, total, int(document["batch_size"]))


def alone(answers: Sequence[Timed]) -> dict[str, Any]:
    """Where the time of a caller who is alone goes: overhead, and its parts, as medians."""

    def p50_ms(value: Callable[[Timed], float]) -> float:
        return 1e3 * float(np.median([value(answer) for answer in answers]))

    overhead = [answer.overhead_s for answer in answers]
    return {
        "requests": len(answers),
        "latency_p50_ms": p50_ms(lambda answer: answer.latency_s),
        "inference_p50_ms": p50_ms(lambda answer: answer.inference_s),
        "overhead_p50_ms": 1e3 * float(np.percentile(overhead, 50)),
        "overhead_p95_ms": 1e3 * float(np.percentile(overhead, 95)),
        "decode_p50_ms": p50_ms(lambda answer: answer.decode_s),
        "queue_p50_ms": p50_ms(lambda answer: answer.queue_s),
        "rest_of_server_p50_ms": p50_ms(
            lambda answer: answer.total_s - answer.decode_s - answer.queue_s - answer.inference_s
        ),
        "outside_server_p50_ms": p50_ms(lambda answer: answer.latency_s - answer.total_s),
    }


def together(answers: Sequence[Timed], wall_s: float) -> dict[str, Any]:
    """Requests a second against the engine's own images a second at the batch sizes formed.

    Args:
        answers: every answer of a closed loop, so that all batches are whole.
        wall_s: from its first request's start to its last answer.
    """
    busy_s = sum(answer.inference_s / answer.batch_size for answer in answers)
    # An image in each answer: a batch of n has n answers, and counts n times.
    batches = sum(1 / answer.batch_size for answer in answers)
    return {
        "requests": len(answers),
        "wall_s": wall_s,
        "requests_per_s": len(answers) / wall_s,
        "engine_busy_s": busy_s,
        "engine_images_per_s": len(answers) / busy_s,
        "mean_batch_size": len(answers) / batches,
        "ratio": busy_s / wall_s,
        "latency_p50_ms": 1e3 * float(np.median([answer.latency_s for answer in answers])),
        "decode_p50_ms": 1e3 * float(np.median([answer.decode_s for answer in answers])),
    }


def rounded(value: Any) -> Any:
    """The same with every float at five digits, for result files."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
