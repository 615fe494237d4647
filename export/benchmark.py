"""Everybody in one table: ours against the dense model in five runtimes, token merging and lower resolution.

    python -m export.benchmark --bundle models/zoo/cifar100-vits14 --images loadtest/images

Who the rivals are, `export.rivals` says; beside them stand the layers' matrix products alone, a bound for float32.
Runs are interleaved (every rival once a round, each round in an order of its own) on real images, all with the same
threads, and compared by their medians in the one run (two looks, which take more time for some images, by their
means). For each batch size and rival: top-1 on the test images, as the bundle's files have it, MACs against dense,
images a second, the speed-up against dense, the ideal one (dense MACs / its MACs), how much of it was realised, and
its GFLOP/s against the best product of the model's shapes. Below: how fast token merging and lower resolution are
where they are as accurate as the presets, and as two looks; and what should be reached, with a verdict. Some twenty
minutes; the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from export import benchmark_plot, precision
from export.equal_accuracy import compare, in_words
from export.gemm import gemm_gflops, layer_products
from export.parity import image_array
from export.rival_accuracy import known
from export.rivals import Pixels, Rival, all_rivals, write_dense
from export.targets import in_words as verdicts
from export.targets import targets
from export.to_onnx import ExportError
from models import checkpoint
from models.checkpoint import CheckpointError
from models.data import DataError, load_images
from models.options import new_file
from service.artifact import Bundle, Precision, load_bundle
from service.budget import Choice
from service.cpu import usable_cpus
from service.errors import ServiceError

THRESHOLDS = (0.15, 0.25, 0.4, 0.6, 0.7)  # at the full size
PAIRS = (Choice(98, 0.1), Choice(84, 0.15), Choice(70, 0.3))  # 34, 53 and 71 % fewer MACs than timm's forward
MIN_ROUNDS = 6
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")  # for speed
_CPUINFO = Path("/proc/cpuinfo")
_KEY_AND_VALUE = re.compile(r"^(model name|flags)\s*: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One batch size and contender; the medians of interleaved runs, of two looks the means."""

    batch_size: int
    precision: str  # of the served graphs, `float32` or `int8`; another kind of rival, as `export.rivals` has it
    rival: str  # its name
    size_px: int
    threshold: float
    sure: float  # above 0: two looks, the first at `size_px`
    again_px: int  # input size of the second
    accuracy: float | None  # top-1 on the test images; None: not measured
    macs_ratio: float  # contender / dense, mean over the images timed
    dense_images_s: float
    images_s: float
    speedup: float  # dense time / its time, turn by turn
    ideal: float  # dense MACs / its MACs
    realised: float  # speedup / ideal
    gflops: float  # GFLOP/s of the MACs counted, 2 FLOPs each
    of_best_gemm: float  # the same over the best rate that a plain float32 product of the model's shapes reached


@dataclass
class Times:
    """One contender's runs at one batch size."""

    seconds: list[float]
    macs: list[float]  # of an image, mean over the batch


def points_of(bundle: Bundle) -> tuple[Choice, ...]:
    """A bundle's presets, its sizes in one look and two, rising thresholds at the full one, PAIRS of its sizes."""
    levels = [Choice(bundle.manifest.full.size_px, level) for level in THRESHOLDS]
    levels += [pair for pair in PAIRS if pair.size_px in bundle.manifest.sizes_px]
    return tuple(dict.fromkeys(precision.points_of(bundle) + levels))


def chosen_points(bundle: Bundle, asked: str | None) -> dict[Precision, tuple[Choice, ...]]:
    """Where ours are timed: as asked, or `points_of`; int8 by default where `export.precision` measures it.

    Raises:
        ValueError: not size:threshold[:sure[:again]], or no size of the bundle.
    """
    points, small = points_of(bundle), tuple(precision.points_of(bundle))
    if asked:
        points = small = tuple(map(_point, asked.split(",")))
        asked_px = {px for point in points for px in (point.size_px, point.again_px) if px}
        if unknown := sorted(asked_px - set(bundle.manifest.sizes_px)):
            raise ValueError(f"{bundle.manifest.name} has no input size {unknown[0]} px")
    return {"float32": points, "int8": small} if "int8" in bundle.manifest.served else {"float32": points}


def _point(text: str) -> Choice:
    size_px, threshold, *rest = text.split(":")
    sure, again_px = rest + ["0"] * (2 - len(rest))
    return Choice(int(size_px), float(threshold), float(sure), int(again_px))


def measure(
    rivals: Sequence[Rival], images: Mapping[int, Pixels], batch_size: int, seconds: float
) -> dict[Rival, Times]:
    """Time every rival on batches of the images of its size for about `seconds`, all in each round.

    Each round has its own order, so that none always runs after the same one and finds what that leaves behind.
    """
    times = {rival: Times([], []) for rival in rivals}
    orders, count = np.random.default_rng(0), len(images[rivals[0].size_px])
    shuffled = orders.permutation(count)  # neighbours may be of one class
    for rival in tqdm(rivals, desc=f"batches of {batch_size}, first runs", leave=False):
        rival.answer(images, np.arange(batch_size) % count)
    end = time.perf_counter() + seconds * len(rivals)
    for turn in range(10_000):
        order = [rivals[i] for i in orders.permutation(len(rivals))]
        for rival in tqdm(order, desc=f"batches of {batch_size}, round {turn + 1}", leave=False):
            rows = shuffled[np.arange(turn * batch_size, (turn + 1) * batch_size) % count]
            for _ in range(2):  # the second one counts: caches are then as they would be under load
                start = time.perf_counter()
                answer = rival.answer(images, rows)
                taken_s = time.perf_counter() - start
            times[rival].seconds.append(taken_s)
            times[rival].macs.append(rival.macs(answer))
        if turn + 1 >= MIN_ROUNDS and time.perf_counter() > end:
            break
    return times


def rows_of(
    times: Mapping[Rival, Times], batch_size: int, accuracy: Callable[[Rival], float | None], best_gemm: float
) -> list[Row]:
    """One row a rival; the first one is the dense model that all are compared with."""
    dense, rows = next(iter(times.values())), []
    dense_s, dense_macs = np.array(dense.seconds), float(np.mean(dense.macs))
    for rival, own in times.items():
        typical = np.mean if rival.second else np.median  # a median would leave out the images that are looked at twice
        taken_s, macs = float(typical(own.seconds)), float(np.mean(own.macs))
        relative = float(typical(np.array(own.seconds) / dense_s))  # by turn: speed drifts
        speedup, ratio = 1 / relative, macs / dense_macs
        gflops = 2e-9 * macs * batch_size / taken_s
        rows.append(
            Row(
                batch_size=batch_size,
                precision=rival.kind,
                rival=rival.name,
                size_px=rival.size_px,
                threshold=rival.threshold,
                sure=rival.sure,
                again_px=rival.again_px,
                accuracy=accuracy(rival),
                macs_ratio=round(ratio, 4),
                dense_images_s=round(batch_size / float(np.median(dense_s)), 2),
                images_s=round(batch_size / taken_s, 2),
                speedup=round(speedup, 3),
                ideal=round(1 / ratio, 3),
                realised=round(speedup * ratio, 3),
                gflops=round(gflops, 1),
                of_best_gemm=round(gflops / best_gemm, 3),
            )
        )
    return rows


def run(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    """Time everybody: the result as it is written."""
    points = chosen_points(bundle, options.points)
    batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    pixels = load_images(options.images or str(options.bundle / "samples"), "test", 1)
    images = {size_px: image_array(pixels, size_px) for size_px in bundle.manifest.sizes_px}
    threads, accuracy = usable_cpus(), known(bundle)
    model, rows = checkpoint.load(bundle.path), []
    rivals = all_rivals(bundle, points, threads) + list(layer_products(model, bundle.manifest.sizes_px, threads))
    best_gemm = gemm_gflops(model, threads)
    for batch_size in tqdm(batch_sizes, desc="batch sizes"):
        times = measure(rivals, images, batch_size, options.seconds)
        rows += [asdict(row) for row in rows_of(times, batch_size, accuracy, best_gemm)]
    presets = bundle.manifest.presets.items()
    named = {str(name): Choice(preset.size_px, preset.threshold, preset.sure) for name, preset in presets}
    return {
        "machine": machine(),
        "version": bundle.manifest.version,
        "rows": rows,
        "equal_accuracy": compare(rows, named),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    about = dict(_KEY_AND_VALUE.findall(_CPUINFO.read_text())) if _CPUINFO.exists() else {}
    flags = about.get("flags", "").split()
    found: dict[str, Any] = {
        "cpu": about.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "threads": usable_cpus(),
    }
    for package in ("onnxruntime", "torch", "openvino"):
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:  # OpenVINO is nobody's dependency
            continue
    return found | {"python": platform.python_version()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for a person."""
    head = "  px threshold  sure again    top-1    MACs    img/s speed-up  ideal realised GFLOP/s of best GEMM"
    lines = [f"batch {'':36s} {head}"]
    for row in rows:
        top1 = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}%"
        lines.append(
            f"{row['batch_size']:5d} {row['rival']:36s} {row['size_px']:4d} {row['threshold']:9.2f} {row['sure']:5.2f} "
            f"{row['again_px'] or '':>5} {top1:>8s} {100 * row['macs_ratio']:6.1f}% {row['images_s']:8.1f} "
            f"{row['speedup']:8.2f} {row['ideal']:6.2f} {row['realised']:8.2f} {row['gflops']:7.0f} "
            f"{row['of_best_gemm']:12.2f}"
        )
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--bundle", type=Path)
    subject.add_argument("--from", type=Path, dest="earlier", metavar="JSON", help="print and plot what --out wrote")
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--points", help="of ours: size:threshold[:sure[:again]],...; default: presets, sizes, levels")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch size and rival")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    parser.add_argument("--plot", type=new_file, help="PNG file to write: accuracy against images/s")
    parser.add_argument("--write-dense", type=Path, metavar="FOLDER", help="write the dense graph there; time nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        if options.write_dense and options.bundle:
            print(write_dense(load_bundle(options.bundle), options.write_dense))
            return 0
        if options.earlier:
            result = json.loads(options.earlier.read_text())
            columns = {field.name for field in fields(Row)}
            if "equal_accuracy" not in result or any(columns - row.keys() for row in result["rows"]):
                raise ValueError(f"{options.earlier} isn't what --out writes now: time anew")
        else:
            result = run(load_bundle(options.bundle), options)
            result = {"command": shlex.join(["python", "-m", "export.benchmark", *(argv or sys.argv[1:])])} | result
        print(table(result["rows"]))
        print(in_words(result["equal_accuracy"]))
        print(verdicts(targets(result["rows"], result["equal_accuracy"])))
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")
        if options.plot:
            benchmark_plot.save(result, options.plot)
    except (ServiceError, CheckpointError, DataError, ExportError, OSError, ValueError) as error:
        print(f"export.benchmark: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
