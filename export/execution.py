"""Why graphs run as `service.execution` says: each of its choices against what else could be chosen, measured.

    python -m export.execution --bundle models/zoo/NAME

Every alternative is one change of how the served graph runs. Runs are interleaved on real images, at the full size and
a threshold that skips a third of the patches, and compared turn by turn: a ratio above 1 means that the alternative is
faster. Then what a graph that was optimised before saves when it is loaded; and what `export.batch_limits` times. Some
minutes; the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tqdm import tqdm

from export import batch_limits
from export.benchmark import machine
from export.parity import image_array
from models.data import DataError, load_images
from models.options import new_file
from service.artifact import Bundle, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError
from service.execution import CPU, Execution, choose_execution, session_options
from service.onnx_engine import OnnxEngine, run_in_pool

Run = Callable[[NDArray[np.uint8], NDArray[np.float32]], Any]
THRESHOLD = 0.3
LOADS = 7
SERVED, OFFLINE = "as served", "optimised offline"
_UNOPTIMISED = {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL}
CHANGES: dict[str, dict[str, Any]] = {  # of a session's options: attributes, or entries of its configuration (a.b)
    "no arena": {"session.use_env_allocators": "0", "enable_cpu_mem_arena": False},
    "arena doubles as it grows": {"session.use_env_allocators": "0"},  # ONNX Runtime's own, one for each session
    "memory planned for the last shape": {"enable_mem_pattern": True},
    "threads sleep between operators": {"session.intra_op.allow_spinning": "0"},
    "threads spin as long as a run": {"session.intra_op.spin_duration_us": "100000"},
    "threads spin on after a run": {"session.force_spinning_stop": "0"},
    "basic graph optimisation": {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC},
}


def alternatives(file: Path, offline: Path, execution: Execution) -> dict[str, Run]:
    """What is compared, by name; the served way first.

    Args:
        file: the served graph.
        offline: where `optimise` wrote it.
        execution: the served way.
    """
    shrinking = ort.RunOptions()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    served = _session(file, execution, {})
    return {
        SERVED: _run(served),
        "two runs at once, half the batch each": _two_runs(served),
        "an instance for each core": _instances(file, execution),
        **{name: _run(_session(file, execution, changes)) for name, changes in CHANGES.items()},
        "arena shrunk after each run": _run(served, shrinking),
        OFFLINE: _run(_session(offline, execution, _UNOPTIMISED)),
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


def optimise(file: Path, execution: Execution, out: Path) -> None:
    """Write a graph as a session makes it of `file`, for `execution` and this machine's CPU.

    The weights are in it: what a session computes from the bundle's is in no other file.
    """
    _session(file, execution, {"optimized_model_filepath": str(out)})


def loading(file: Path, offline: Path, execution: Execution) -> dict[str, float]:
    """Seconds to make a session of the served graph and of what `optimise` wrote, by turns, medians; its size."""
    taken: dict[str, list[float]] = {"online_s": [], "offline_s": []}
    for _ in range(LOADS):
        for name, graph, changes in (("online_s", file, {}), ("offline_s", offline, _UNOPTIMISED)):
            start = time.perf_counter()
            _session(graph, execution, changes)
            taken[name].append(time.perf_counter() - start)
    medians = {name: round(float(np.median(each)), 4) for name, each in taken.items()}
    return medians | {"offline_bytes": offline.stat().st_size}


def _session(file: Path, execution: Execution, changes: dict[str, Any]) -> ort.InferenceSession:
    options = session_options(execution)
    for name, value in changes.items():
        if "." in name:
            options.add_session_config_entry(name, value)
        else:
            setattr(options, name, value)
    return ort.InferenceSession(file, options, providers=[CPU])


def _run(session: ort.InferenceSession, options: ort.RunOptions | None = None) -> Run:
    return lambda images, threshold: session.run(None, {"images": images, "threshold": threshold}, options)


def _two_runs(session: ort.InferenceSession) -> Run:
    """One session, which the service gives a second batch while it runs a first; one image is a run alone."""

    def beside(images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> None:
        run_in_pool(session, {"images": images, "threshold": threshold}, ort.RunOptions())

    return _dealt([_run(session), beside])


def _instances(file: Path, execution: Execution) -> Run:
    """A session of one thread for each core, so one image has one core."""
    one = execution._replace(threads=1)
    return _dealt([_run(_session(file, one, {})) for _ in range(execution.threads)])


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


def compare(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """Time everything: the result as it is written.

    Raises:
        ValueError: no graph in this precision, or batch sizes that are none.
    """
    sizes, limits = ([int(size) for size in text.split(",")] for text in (options.batch_sizes, options.limits))
    if min(sizes + limits) < 1:
        raise ValueError("a batch has one image at least")
    offered, threads = bundle.manifest.served, usable_cpus()
    execution = choose_execution(
        "cpu", options.precision, threads=threads, max_batch_size=max(limits), available=[CPU], offered=offered
    )
    if execution.precision not in offered:
        raise ValueError(f"{bundle.path} has no {execution.precision} graph")
    file, full_px = bundle.path / offered[execution.precision], bundle.manifest.full.size_px
    pixels = load_images(options.images or str(options.bundle / "samples"), "test", 1)
    images = {size_px: image_array(pixels, size_px) for size_px in (full_px, min(bundle.manifest.sizes_px))}
    with tempfile.TemporaryDirectory() as scratch:
        offline = Path(scratch) / "optimised.onnx"
        optimise(file, execution, offline)
        loaded, runs = loading(file, offline, execution), alternatives(file, offline, execution)
    speed = {
        str(size): measure(runs, images[full_px], options.threshold, size, options.seconds)
        for size in tqdm(sizes, desc="batch sizes")
    }
    engine = OnnxEngine(bundle, threads=threads, precision=execution.precision, provider="cpu")
    batches = batch_limits.measure(engine.infer, images, (0.0, options.threshold), limits, options.seconds)
    return {
        "machine": machine(),
        "version": bundle.manifest.version,
        "precision": execution.precision,
        "threads": threads,
        "threshold": options.threshold,
        "speed": speed,
        "loading": loaded,
        "batches": [row._asdict() for row in batches],
    }


def in_words(result: dict[str, Any]) -> str:
    """The result for a person."""
    loaded, batches = result["loading"], [batch_limits.Row(**row) for row in result["batches"]]
    sentence = (
        f"Loading the graph takes {loaded['online_s']:.3f} s, optimised offline {loaded['offline_s']:.3f} s, "
        f"from a file of {loaded['offline_bytes'] / 1e6:.1f} MB."
    )
    return "\n\n".join((table(result["speed"]), sentence, batch_limits.table(batches)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument(
        "--precision", choices=["auto", "float32", "int8"], default="auto", help="auto: int8 if the bundle has it"
    )
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="(%(default)s)")
    parser.add_argument("--batch-sizes", default="1,8,32", help="at which alternatives are compared (%(default)s)")
    limits = ",".join(map(str, batch_limits.BATCH_SIZES))
    parser.add_argument("--limits", default=limits, help="batch sizes whose rates are timed (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each time that is taken (%(default)s)")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        command = shlex.join(["python", "-m", "export.execution", *(argv or sys.argv[1:])])
        result = {"command": command} | compare(load_bundle(options.bundle), options)
        print(in_words(result))
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    except (ServiceError, DataError, OSError, ValueError) as error:
        print(f"export.execution: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
