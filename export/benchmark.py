"""Does a skipped patch cost nothing? The sparse graph against the dense model, same runtime, threads and images.

    python -m export.benchmark --bundle models/zoo/cifar100-vits14

Dense is the same weights through timm's own forward, exported the same way. Runs are interleaved (dense, then each
threshold, round after round) on real images, and compared by their medians in the one run. For each batch size and
threshold: images a second, MACs against dense, the speed-up, the ideal one (dense MACs / sparse MACs) and how much of
it was realised. A minute or two; the last line of the output is one JSON object.
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

THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.8, 1.0)


@dataclass(frozen=True)
class Row:
    """One batch size and threshold; the medians of interleaved runs."""

    batch_size: int
    threshold: float
    macs_ratio: float  # sparse / dense, mean over the images timed
    dense_images_s: float
    images_s: float
    speedup: float  # dense time / sparse time, median over turns
    ideal: float  # dense MACs / sparse MACs
    realised: float  # speedup / ideal


def dense_session(bundle: Bundle, threads: int) -> ort.InferenceSession:
    """The dense model of a bundle in ONNX Runtime, options as the served engine has them."""
    model = checkpoint.load(bundle.path)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / WEIGHTS).write_bytes((bundle.path / WEIGHTS).read_bytes())
        file = Path(scratch) / "dense.onnx"
        images = example_inputs(model)[0]
        save(to_onnx(DenseViT(model).eval(), (images,), (INPUTS[:1], ("logits",)), Path(scratch) / WEIGHTS), file)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def measure(
    bundle: Bundle,
    images: NDArray[np.uint8],
    batch_sizes: tuple[int, ...],
    thresholds: tuple[float, ...],
    seconds: float,
) -> list[Row]:
    """Time every pair of batch size and threshold for about `seconds`, dense interleaved."""
    threads = usable_cpus()
    engine, dense = OnnxEngine(bundle, threads=threads), dense_session(bundle, threads)
    rows = []
    for batch_size in tqdm(batch_sizes, desc="batch sizes"):
        batches = [np.resize(np.roll(images, -i, axis=0), (batch_size, *images.shape[1:])) for i in range(len(images))]
        times: dict[float | None, list[float]] = {key: [] for key in (None, *thresholds)}
        macs: dict[float, list[float]] = {threshold: [] for threshold in thresholds}
        end = time.perf_counter() + seconds * len(times)
        for turn in range(10_000):
            batch = batches[turn * batch_size % len(batches)]
            for key in times:
                limit = np.full(batch_size, key or 0.0, np.float32)
                # Twice, the second time timed: the other session's threads still spin while the first one runs.
                for _ in range(2):
                    start = time.perf_counter()
                    out = dense.run(None, {"images": batch}) if key is None else engine.infer(batch, limit)
                    taken = time.perf_counter() - start
                times[key].append(taken)
                if key is not None:
                    macs[key].append(float(used_macs(bundle.manifest.full, out[1].sum(-1)).mean()))
            if turn >= 5 and time.perf_counter() > end:
                break
        for threshold in thresholds:
            rows.append(_row(batch_size, threshold, times, macs[threshold], bundle.manifest.full.dense_macs))
    return rows


def _row(
    batch_size: int, threshold: float, times: dict[float | None, list[float]], macs: list[float], dense_macs: int
) -> Row:
    dense_s, sparse_s = float(np.median(times[None])), float(np.median(times[threshold]))
    speedup = float(np.median(np.array(times[None]) / np.array(times[threshold])))  # turn by turn: the machine drifts
    ratio = float(np.mean(macs)) / dense_macs
    return Row(
        batch_size=batch_size,
        threshold=threshold,
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
    lines = ["batch threshold    MACs dense img/s    img/s speed-up  ideal realised"]
    for row in rows:
        lines.append(
            f"{row.batch_size:5d} {row.threshold:9.2f} {100 * row.macs_ratio:6.1f}% {row.dense_images_s:11.1f} "
            f"{row.images_s:8.1f} {row.speedup:8.2f} {row.ideal:6.2f} {row.realised:8.2f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--thresholds", default=",".join(map(str, THRESHOLDS)))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch size and threshold")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    try:
        bundle = load_bundle(options.bundle)
        pixels = load_images(options.images or str(options.bundle / "samples"), "test", 1)
        images = image_array(pixels, bundle.manifest.full.size_px)
        batch_sizes = tuple(int(size) for size in options.batch_sizes.split(","))
        thresholds = tuple(float(value) for value in options.thresholds.split(","))
        rows = measure(bundle, images, batch_sizes, thresholds, options.seconds)
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
