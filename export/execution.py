"""Why graphs run as `service.execution` says: each of its choices against what else could be chosen, measured.

    python -m export.execution --bundle models/zoo/NAME

Every alternative is one change of the served session's options. Runs are interleaved on real images, at the full size
and a threshold that skips a third of the patches, and compared turn by turn: a ratio above 1 means that the alternative
is faster. A few minutes; the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tqdm import tqdm

from export.parity import image_array
from models.data import DataError, load_images
from service.artifact import load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError
from service.execution import CPU, Execution, session_options
from service.onnx_engine import run_in_pool

Run = Callable[[NDArray[np.uint8], NDArray[np.float32]], Any]
THRESHOLD = 0.3
SERVED = "as served"


def alternatives(file: Path, execution: Execution) -> dict[str, Run]:
    """What is compared, by name; the served way first."""

    def changed(change: Callable[[ort.SessionOptions], None]) -> Run:
        options = session_options(execution)
        change(options)
        return _session(file, options)

    def no_arena(options: ort.SessionOptions) -> None:
        options.add_session_config_entry("session.use_env_allocators", "0")
        options.enable_cpu_mem_arena = False

    def plan_memory(options: ort.SessionOptions) -> None:
        options.enable_mem_pattern = True

    def sleep(options: ort.SessionOptions) -> None:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def spin_longer(options: ort.SessionOptions) -> None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100000")

    def spin_on(options: ort.SessionOptions) -> None:
        options.add_session_config_entry("session.force_spinning_stop", "0")

    def basic(options: ort.SessionOptions) -> None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC

    return {
        SERVED: changed(lambda options: None),
        "two runs at once, half the batch each": _two_runs(file, execution),
        "an instance for each core": _instances(file, execution),
        "no arena": changed(no_arena),
        "memory planned for the last shape": changed(plan_memory),
        "threads sleep between operators": changed(sleep),
        "threads spin as long as a run": changed(spin_longer),
        "threads spin on after a run": changed(spin_on),
        "basic graph optimisation": changed(basic),
    }


def measure(
    runs: dict[str, Run], images: NDArray[np.uint8], threshold: float, batch_size: int, seconds: float
) -> dict[str, float]:
    """Each alternative's speed over the served one's, median over turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    limit = np.full(batch_size, threshold, np.float32)
    for turn in range(10_000):
        chosen = images[np.arange(turn * batch_size, (turn + 1) * batch_size) % len(images)]
        for name, run in runs.items():
            for _ in range(2):  # the second one counts: caches are then as they would be under load
                start = time.perf_counter()
                run(chosen, limit)
                taken_s = time.perf_counter() - start
            times[name].append(taken_s)
        if turn >= 5 and time.perf_counter() > end:
            break
    served = np.array(times[SERVED])
    return {name: round(float(np.median(served / np.array(taken))), 3) for name, taken in times.items()}


def _session(file: Path, options: ort.SessionOptions) -> Run:
    session = ort.InferenceSession(file, options, providers=[CPU])
    return lambda images, threshold: session.run(None, {"images": images, "threshold": threshold})


def _two_runs(file: Path, execution: Execution) -> Run:
    """One session, which the service gives a second batch while it runs a first; one image is a run alone."""
    session = ort.InferenceSession(file, session_options(execution), providers=[CPU])

    def beside(images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> None:
        run_in_pool(session, {"images": images, "threshold": threshold}, ort.RunOptions())

    return _dealt([lambda images, threshold: session.run(None, {"images": images, "threshold": threshold}), beside])


def _instances(file: Path, execution: Execution) -> Run:
    """A session of one thread for each core, so one image has one core."""
    return _dealt([_session(file, session_options(execution._replace(threads=1))) for _ in range(execution.threads)])


def _dealt(runs: list[Run]) -> Run:
    """A batch dealt to several that run at once."""
    pool = ThreadPoolExecutor(len(runs))

    def run(images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> None:
        parts = [rows for rows in np.array_split(np.arange(len(images)), len(runs)) if len(rows)]
        list(pool.map(lambda each: each[0](images[each[1]], threshold[each[1]]), zip(runs, parts, strict=False)))

    return run


def table(rows: dict[str, dict[str, float]]) -> str:
    """As Markdown: a row for each alternative, a column for each batch size."""
    names = list(next(iter(rows.values())))
    lines = [
        f"| speed over the served way | {' | '.join(f'batch {size}' for size in rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    lines += [f"| {name} | {' | '.join(f'{found[name]:.2f}' for found in rows.values())} |" for name in names]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument("--batch-sizes", default="1,8,32", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch size and alternative (%(default)s)")
    options = parser.parse_args(argv)
    try:
        bundle = load_bundle(options.bundle)
        pixels = load_images(options.images or str(options.bundle / "samples"), "test", 1)
        images = image_array(pixels, bundle.manifest.full.size_px)
        execution = Execution((CPU,), "float32", usable_cpus(), 32)
        runs = alternatives(bundle.path / bundle.manifest.served["float32"], execution)
        sizes = [int(size) for size in options.batch_sizes.split(",")]
    except (ServiceError, DataError, ValueError) as error:
        print(f"export.execution: {error}", file=sys.stderr)
        return 2
    rows = {
        str(size): measure(runs, images, THRESHOLD, size, options.seconds) for size in tqdm(sizes, desc="batch sizes")
    }
    print(table(rows))
    print(json.dumps({"threads": execution.threads, "speed": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
