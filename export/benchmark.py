"""Does a skipped patch cost nothing? The sparse graph against the dense model, same runtime, threads and images.

    python -m export.benchmark --bundle models/zoo/cifar100-vits14

Dense is the same weights at the full input size without gates, exported the same way; its layers are timm's own, so
LayerScales and keys and values are operators of their own there. Its rivals are timm's own forward
in torch, and in each precision the bundle's presets, its input sizes with nothing skipped, and rising thresholds at the
full size. Runs are interleaved (dense, then each rival, round after round) on real images, and compared by their
medians in the one run. For each batch size and rival: images a second, MACs against dense, the speed-up, the ideal one
(dense MACs / its MACs), how much of it was realised, and its GFLOP/s against the best product of the model's shapes.
Minutes; the last line of the output is one JSON object.
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
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tqdm import tqdm

from export.graph import INPUTS, DenseViT, example_inputs
from export.parity import image_array
from export.to_onnx import OPSET, ExportError, save, to_onnx
from models import checkpoint
from models.checkpoint import WEIGHTS, CheckpointError
from models.data import DataError, load_images
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT
from service.artifact import Bundle, Precision, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError
from service.macs import used_macs
from service.onnx_engine import OnnxEngine

THRESHOLDS = (0.15, 0.25, 0.4, 0.6, 0.7)
TIMM = "timm"
Point = tuple[int, float]  # input size in px, threshold


@dataclass(frozen=True)
class Row:
    """One batch size and contender; the medians of interleaved runs."""

    batch_size: int
    precision: str  # of the served graphs; `timm` is timm's own forward in torch, float32, eager
    size_px: int
    threshold: float
    macs_ratio: float  # contender / dense, mean over the images timed
    dense_images_s: float
    images_s: float
    speedup: float  # dense time / its time, median over turns
    ideal: float  # dense MACs / its MACs
    realised: float  # speedup / ideal
    gflops: float  # GFLOP/s of the MACs counted, 2 FLOPs each
    of_best_gemm: float  # the same over the best rate that a plain float32 product of the model's shapes reached


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
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def points_of(bundle: Bundle) -> tuple[Point, ...]:
    """A bundle's presets, each of its input sizes alone, and rising thresholds at the full size."""
    presets = [(preset.size_px, preset.threshold) for preset in bundle.manifest.presets.values()]
    sizes = [(size_px, 0.0) for size_px in bundle.manifest.sizes_px]
    return tuple(dict.fromkeys(presets + sizes + [(bundle.manifest.full.size_px, level) for level in THRESHOLDS]))


Contender = tuple[str, int, float]  # precision, input size in px, threshold


class Rivals:
    """Everything that is timed: the dense graph, the served graphs in each precision, timm's own forward."""

    def __init__(self, bundle: Bundle, images: dict[int, NDArray[np.uint8]], precisions: tuple[Precision, ...]) -> None:
        threads = usable_cpus()
        torch.set_num_threads(threads)
        self._manifest, self._images = bundle.manifest, images
        self._engines = {name: OnnxEngine(bundle, threads=threads, precision=name) for name in precisions}
        self._dense = dense_session(bundle, threads)
        self._model = checkpoint.load(bundle.path)

    def run(self, contender: Contender | None, turn: int, batch_size: int) -> tuple[float, float]:
        """Seconds of one run (None: of the dense graph) and the MACs of an image, mean over the batch."""
        precision, size_px, threshold = contender or ("", self._manifest.full.size_px, 0.0)
        chosen = np.arange(turn * batch_size, (turn + 1) * batch_size) % len(self._images[size_px])
        batch, limit = self._images[size_px][chosen], np.full(batch_size, threshold, np.float32)
        macs = float(self._manifest.full.dense_macs)
        for _ in range(2):  # the second one counts: caches are then as they would be under load
            start = time.perf_counter()
            if contender is None:
                self._dense.run(None, {"images": batch})
            elif precision == TIMM:
                self._eager(batch)
            else:
                kept = self._engines[precision].infer(batch, limit).kept  # type: ignore[index]
            taken_s = time.perf_counter() - start
        if precision == TIMM:
            macs = float(self._manifest.full.timm_forward_macs)
        elif contender:
            macs = float(used_macs(self._manifest.graph(size_px), kept.sum(-1)).mean())
        return taken_s, macs

    @torch.inference_mode()
    def _eager(self, batch: NDArray[np.uint8]) -> None:
        config = self._model.config
        self._model.vit(normalise(torch.from_numpy(batch), config.mean, config.std))


def measure(
    bundle: Bundle,
    images: dict[int, NDArray[np.uint8]],
    batch_sizes: tuple[int, ...],
    points: tuple[Point, ...],
    seconds: float,
    precisions: tuple[Precision, ...] = ("float32",),
) -> list[Row]:
    """Time every contender at every batch size for about `seconds`, dense interleaved; images by their size."""
    rivals, full = Rivals(bundle, images, precisions), bundle.manifest.full
    contenders: list[Contender] = [(TIMM, full.size_px, 0.0)]
    contenders += [(precision, *point) for precision in precisions for point in points]
    best_gemm = gemm_gflops(checkpoint.load(bundle.path), usable_cpus())
    rows = []
    for batch_size in tqdm(batch_sizes, desc="batch sizes"):
        times: dict[Contender | None, list[float]] = {key: [] for key in (None, *contenders)}
        macs: dict[Contender | None, list[float]] = {key: [] for key in times}
        end = time.perf_counter() + seconds * len(times)
        for turn in range(10_000):
            for key in times:
                taken_s, spent = rivals.run(key, turn, batch_size)
                times[key].append(taken_s)
                macs[key].append(spent)
            if turn >= 5 and time.perf_counter() > end:
                break
        for key in contenders:
            rows.append(_row(batch_size, key, times, float(np.mean(macs[key])), full.dense_macs, best_gemm))
    return rows


def gemm_gflops(model: PrunedViT, threads: int) -> float:
    """The best rate of a plain float32 product at the model's shapes, in ONNX Runtime, over numbers of rows."""
    width, hidden = model.vit.embed_dim, model.vit.blocks[0].mlp.fc1.out_features
    rng = np.random.default_rng(0)
    best = 0.0
    for inner, outer in ((width, hidden), (hidden, width), (width, 3 * width)):
        weight = helper.make_tensor(
            "w", TensorProto.FLOAT, (inner, outer), rng.standard_normal(inner * outer).astype(np.float32)
        )
        shapes = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", dim])
            for name, dim in (("x", inner), ("y", outer))
        ]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", shapes[:1], shapes[1:], [weight]
        )
        product = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(product.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for rows in (64, 256, 1024):
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            for _ in range(20):
                start = time.perf_counter()
                session.run(None, {"x": x})
                best = max(best, 2e-9 * rows * inner * outer / (time.perf_counter() - start))
    return best


def _row(
    batch_size: int,
    contender: Contender,
    times: dict[Contender | None, list[float]],
    macs: float,
    dense_macs: int,
    best_gemm: float,
) -> Row:
    dense_s, taken_s, ratio = float(np.median(times[None])), float(np.median(times[contender])), macs / dense_macs
    speedup = float(np.median(np.array(times[None]) / np.array(times[contender])))  # turn by turn: the machine drifts
    gflops = 2e-9 * macs * batch_size / taken_s
    return Row(
        batch_size=batch_size,
        precision=contender[0],
        size_px=contender[1],
        threshold=contender[2],
        macs_ratio=round(ratio, 4),
        dense_images_s=round(batch_size / dense_s, 2),
        images_s=round(batch_size / taken_s, 2),
        speedup=round(speedup, 3),
        ideal=round(1 / ratio, 3),
        realised=round(speedup * ratio, 3),
        gflops=round(gflops, 1),
        of_best_gemm=round(gflops / best_gemm, 3),
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
    lines = ["batch graphs    px threshold    MACs dense img/s    img/s speed-up  ideal realised GFLOP/s of best GEMM"]
    for row in rows:
        lines.append(
            f"{row.batch_size:5d} {row.precision:8s} {row.size_px:4d} {row.threshold:9.2f} "
            f"{100 * row.macs_ratio:6.1f}% {row.dense_images_s:11.1f} {row.images_s:8.1f} {row.speedup:8.2f} "
            f"{row.ideal:6.2f} {row.realised:8.2f} {row.gflops:7.0f} {row.of_best_gemm:12.2f}"
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
        has_int8 = "int8" in bundle.manifest.served
        precisions: tuple[Precision, ...] = ("float32", "int8") if has_int8 else ("float32",)
        rows = measure(bundle, images, batch_sizes, points, options.seconds, precisions)
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
