"""Resident memory of a server process while it answers: requests of changing size, threshold and company; the curve.

Changing shapes are what makes the arena of an inference runtime grow. Memory is read from /proc, so on Linux alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from loadtest import plots
from loadtest.connection import Connection, post
from loadtest.data import image_format

MOST_TOGETHER = 48  # above the largest batch, so that batches of every size form
PERIOD = 400  # requests from one ebb to the next
MAX_THRESHOLD = 0.75  # the highest that training drew
SAMPLE_S = 0.25
MARKS = (1_000, 5_000, 10_000)  # answers after which memory is told


class Sample(NamedTuple):
    """The process at one moment."""

    at_s: float
    answers: int  # so far
    together: int  # requests on their way
    resident_mb: float  # millions of bytes


def resident_mb(pid: int, field: str = "VmRSS") -> float | None:
    """Resident memory of a process in millions of bytes, or with `VmHWM` the most it ever was; None but on Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:")), None)


def level(number: int) -> int:
    """How many requests may be on their way when request `number` leaves: up from 1 and down again, evenly."""
    half = PERIOD // 2
    return 1 + round((MOST_TOGETHER - 1) * (1 - abs(number % PERIOD - half) / half))


def requests(images: Sequence[bytes], sizes_px: Sequence[int], count: int, seed: int = 0) -> list[bytes]:
    """Requests of random sizes, thresholds and images."""
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        image = images[int(draw.integers(len(images)))]
        size_px, threshold = sizes_px[int(draw.integers(len(sizes_px)))], draw.uniform(0, MAX_THRESHOLD)
        path = f"/v1/classify?size={size_px}&threshold={threshold:.4f}"
        drawn.append(post(path, image, f"image/{image_format(image)}"))
    return drawn


async def watch(url: str, pid: int, asked: Sequence[bytes], on_answer: Callable[[], None]) -> list[Sample]:
    """Send all requests, as many together as `level` says, and sample the process's memory meanwhile.

    Raises:
        FailedRequest: one wasn't answered with 200.
    """
    now_s = asyncio.get_running_loop().time
    idle = [await Connection.open(url) for _ in range(MOST_TOGETHER)]
    connections, samples, start_s, answers = list(idle), [], now_s(), itertools.count()
    done, under_way = 0, set[asyncio.Task[None]]()

    async def ask(request: bytes) -> None:
        nonlocal done
        connection = idle.pop()
        await connection.ask(request)
        idle.append(connection)
        done = next(answers) + 1
        on_answer()

    async def sample() -> None:
        while (memory := resident_mb(pid)) is not None:
            samples.append(Sample(now_s() - start_s, done, len(under_way), memory))
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    try:
        for number, request in enumerate(asked):
            while len(under_way) >= level(number):
                finished, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                under_way -= finished
                for task in finished:
                    task.result()
            under_way.add(asyncio.create_task(ask(request)))
        await asyncio.gather(*under_way)
        if (memory := resident_mb(pid)) is not None:
            samples.append(Sample(now_s() - start_s, done, 0, memory))
    finally:
        for task in (sampling, *under_way):
            task.cancel()
        await asyncio.gather(sampling, *under_way, return_exceptions=True)
        for connection in connections:
            await connection.close()
    return samples


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """PURE: memory at the marks, at most, and in the last third of the answers against the first third; MB."""
    answers = np.array([sample.answers for sample in samples])
    memory = np.array([sample.resident_mb for sample in samples])
    first, last = (float(memory[part].mean()) for part in (answers <= answers[-1] / 3, answers >= answers[-1] * 2 / 3))
    marks = {str(mark): float(memory[answers >= mark][0]) for mark in MARKS if answers[-1] >= mark}
    return {
        "requests": int(answers[-1]),
        "seconds": samples[-1].at_s,
        "at_start_mb": float(memory[0]),
        "after_mb": marks,
        "at_end_mb": float(memory[-1]),
        "most_mb": float(memory.max()),
        "first_third_mb": first,
        "last_third_mb": last,
        "drift_mb": last - first,
        "curve": {
            "answers": answers.tolist(),
            "together": [sample.together for sample in samples],
            "resident_mb": memory.tolist(),
        },
    }


def curve(result: dict[str, Any], target_mb: float) -> Figure:
    """PURE: the picture of a result's memory, above how many requests were on their way."""
    found = result["memory"]
    title = (
        f"Resident memory over {found['requests']:,} requests: {found['most_mb']:.0f} MB at most, "
        f"{found['drift_mb']:+.1f} MB from the first third to the last"
    )
    figure = plots.titled(5.6, title, result)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    columns = found["curve"]
    above.plot(columns["answers"], columns["resident_mb"], color=plots.BLUE, linewidth=1.5)
    above.axhline(target_mb, color=plots.INK, linewidth=1, linestyle="--")
    above.annotate(f"{target_mb:g} MB", (0, target_mb), (4, 4), textcoords="offset points", fontsize=9, color=plots.INK)
    above.set_ylim(0, 1.12 * max(target_mb, found["most_mb"]))
    plots.panel(above, "", "resident memory, MB")
    below.plot(columns["answers"], columns["together"], color=plots.FAINT, linewidth=0.8)
    plots.panel(below, "answers so far; random input sizes and thresholds", "requests together")
    return figure
