"""Does a skipped patch cost nothing? The sparse graph against the dense model, same runtime, threads and images.

    python -m export.benchmark --bundle models/zoo/cifar100-vits14

Dense is the same weights at the full input size without gates, exported the same way. Its rivals are the bundle's
presets, its input sizes with nothing skipped, and rising thresholds at the full size. Runs are interleaved (dense, then
each pair, round after round) on real images, and compared by their medians in the one run. For each batch size and
pair: images a second, MACs against dense, the speed-up, the ideal one (dense MACs / sparse MACs) and how much of it
was realised. A few minutes; the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tqdm import tqdm

from export.bundle import image_array
from export.graph import INPUTS, DenseViT, example_inputs
from export.to_onnx import ExportError, save, to_onnx
from models import checkpoint
from models.checkpoint import WEIGHTS, CheckpointError
from models.data import DataError, load_images
from service.artifact import Bundle, load_bundle
from service.cpu import usable_cpus
from service.engine import OnnxEngine
from service.errors import ServiceError
from service.macs import used_macs

THRESHOLDS = (0.15, 0.25, 0.4, 0.6, 0.7)
Point = tuple[int, float]  # input size in px, threshold


@dataclass(frozen=True)
class Row:
    """One batch size and point; the medians of interleaved runs."""

    batch_size: int
    size_px: int
    threshold: float
    macs_ratio: float  # sparse / dense, mean over the images timed
    dense_images_s: float
    images_s: float
    speedup: float  # dense time / sparse time, median over turns
    ideal: float  # dense MACs / sparse MACs
    realised: float  # speedup / ideal


def write_dense(bundle: Bundle, folder: Path) -> Path:
    """Write the dense model of a bundle (`images` in, `logits` out) beside a copy of its weights; returns its file."""
    model = checkpoint.load(bundle.path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes((bundle.path / WEIGHTS).read_bytes())
    images = example_inputs(model)[0]
    file = folder / "dense.onnx"
    save(to_onnx(DenseViT(model).eval(), (images,), (INPUTS[:1], ("logits",)), folder / WEIGHTS), file)
    return file


def dense_session(bundle: Bundle, threads: int) -> ort.InferenceSession:
    """The dense model of a bundle in ONNX Runtime, options as the served engine has them."""
    with tempfile.TemporaryDirectory() as scratch:
        file = write_dense(bundle, Path(scratch))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def points_of(bundle: Bundle) -> tuple[Point, ...]:
    """A bundle's presets, each of its input sizes alone, and rising thresholds at the full size."""
    presets = [(preset.size_px, preset.threshold) for preset in bundle.manifest.presets.values()]
    sizes = [(size_px, 0.0) for size_px in bundle.manifest.sizes_px]
    return tuple(dict.fromkeys(presets + sizes + [(bundle.manifest.full.size_px, level) for level in THRESHOLDS]))


def measure(
    bundle: Bundle,
    images: dict[int, NDArray[np.uint8]],
    batch_sizes: tuple[int, ...],
    points: tuple[Point, ...],
    seconds: float,
) -> list[Row]:
    """Time every pair of batch size and point for about `seconds`, dense interleaved; images by their size."""
    threads, full = usable_cpus(), bundle.manifest.full
    engine, dense = OnnxEngine(bundle, threads=threads), dense_session(bundle, threads)
    rows = []
    for batch_size in tqdm(batch_sizes, desc="batch sizes"):
        times: dict[Point | None, list[float]] = {key: [] for key in (None, *points)}
        macs: dict[Point, list[float]] = {point: [] for point in points}
        end = time.perf_counter() + seconds * len(times)
        for turn in range(10_000):
            for key in times:
                size_px, threshold = key or (full.size_px, 0.0)
                limit = np.full(batch_size, threshold, np.float32)
                chosen = np.arange(turn * batch_size, (turn + 1) * batch_size) % len(images[size_px])
                batch = images[size_px][chosen]
                # Twice, the second time timed: the other session's threads still spin while the first one runs.
                for _ in range(2):
                    start = time.perf_counter()
                    out = dense.run(None, {"images": batch}) if key is None else engine.infer(batch, limit)
                    taken = time.perf_counter() - start
                times[key].append(taken)
                if key is not None:
                    macs[key].append(float(used_macs(bundle.manifest.graph(size_px), out[1].sum(-1)).mean()))
            if turn >= 5 and time.perf_counter() > end:
                break
        rows += [_row(batch_size, point, times, float(np.mean(macs[point])) / full.dense_macs) for point in points]
    return rows


def _row(batch_size: int, point: Point, times: dict[Point | None, list[float]], ratio: float) -> Row:
    dense_s, sparse_s = float(np.median(times[None])), float(np.median(times[point]))
    speedup = float(np.median(np.array(times[None]) / np.array(times[point])))  # turn by turn: the machine drifts
    return Row(
        batch_size=batch_size,
        size_px=point[0],
        threshold=point[1],
        macs_ratio=round(ratio, 4),
        dense_images_s=round(batch_size / dense_s, 2),
        images_s=round(batch_size / sparse_s, 2),
        speedup=round(speedup, 3),
        ideal=round(1 / ratio, 3),
        realised=round(speedup * ratio, 3),
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    return {"cpu": name, "threads": usable_cpus(), "onnxruntime": ort.__version__, "python": platform.python_version()}


def table(rows: list[Row]) -> str:
    """The rows for a person."""
    lines = ["batch   px threshold    MACs dense img/s    img/s speed-up  ideal realised"]
    for row in rows:
        lines.append(
            f"{row.batch_size:5d} {row.size_px:4d} {row.threshold:9.2f} {100 * row.macs_ratio:6.1f}% "
            f"{row.dense_images_s:11.1f} {row.images_s:8.1f} {row.speedup:8.2f} {row.ideal:6.2f} {row.realised:8.2f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--points", help="size:threshold, comma-separated; default: presets, sizes, thresholds")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch size and point")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--write-dense", type=Path, metavar="FOLDER", help="write the dense graph there; time nothing")
    options = parser.parse_args(argv)
    try:
        bundle = load_bundle(options.bundle)
        if options.write_dense:
            print(write_dense(bundle, options.write_dense))
            return 0
        pixels = load_images(options.images or str(options.bundle / "samples"), "test", 1)
        images = {size_px: image_array(pixels, size_px) for size_px in bundle.manifest.sizes_px}
        batch_sizes = tuple(int(size) for size in options.batch_sizes.split(","))
        points = points_of(bundle)
        if options.points:
            pairs = (pair.split(":") for pair in options.points.split(","))
            points = tuple((int(size), float(threshold)) for size, threshold in pairs)
            if unknown := sorted({size for size, _ in points} - set(images)):
                raise ValueError(f"{bundle.manifest.name} has no input size {unknown[0]} px")
        rows = measure(bundle, images, batch_sizes, points, options.seconds)
    except (ServiceError, CheckpointError, DataError, ExportError, ValueError) as error:
        print(f"export.benchmark: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    result = {"machine": machine(), "version": bundle.manifest.version, "rows": [asdict(row) for row in rows]}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
