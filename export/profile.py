"""Where the time of a run goes: by kind of operator and by layer, from ONNX Runtime's own profile.

    python -m export.profile --bundle models/zoo/NAME --size 98 --threshold 0.1 --batch-size 8 --precision int8

The profile itself takes time, most for the smallest operators, so shares are what it is good for. The last line of the
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.parity import image_array
from models.data import DataError, load_images
from service.artifact import Bundle, Precision, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError

KINDS = {
    "projections and MLPs": ("Gemm", "MatMulIntegerToFloat", "Conv", "ReorderOutput"),
    "attention, projected": ("Attention", "QAttention"),
    "attention's products, gates": ("MatMul", "FusedMatMul", "Softmax", "Sigmoid", "Greater", "Or", "LessOrEqual"),
    "activation functions": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
    "norms": ("LayerNormalization", "SkipLayerNormalization", "ReduceMean"),
    "to int8": ("QuantizeLinear",),
    "gather and scatter": ("Gather", "ScatterND", "NonZero", "CumSum", "Pad"),
    "sums and factors": ("Add", "Mul", "Sub", "Div"),
    "layout": ("Transpose", "Reshape", "Split", "Slice", "Concat", "Squeeze", "Unsqueeze", "Expand", "Shape", "Cast"),
}
RUNS, WARM_RUNS = 20, 3
LAYER_NORMS = 2  # of a layer: they tell layers apart


def profile(
    bundle: Bundle, images: NDArray[np.uint8], threshold: float, precision: Precision
) -> dict[str, dict[str, float]]:
    """Milliseconds of a run by kind of operator and by layer, mean over RUNS of `images` (B, S, S, 3) in one batch."""
    name = (bundle.manifest.served if threshold > 0 else bundle.manifest.dense).get(precision)
    if name is None:
        raise ValueError(f"{bundle.path} has no {precision} graph")
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.intra_op_num_threads = usable_cpus()
        options.enable_mem_pattern = False
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "run")
        session = ort.InferenceSession(bundle.path / name, options, providers=["CPUExecutionProvider"])
        feed = {"images": images, "threshold": np.full(len(images), threshold, np.float32)}
        for _ in range(WARM_RUNS + RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return summarise([sorted((e for e in kernels if a <= e["ts"] < b), key=_start) for a, b in runs[WARM_RUNS:]])


def summarise(runs: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Each run's kernels in order -> mean milliseconds by kind and by layer."""
    kinds: dict[str, float] = defaultdict(float)
    layers: dict[str, float] = defaultdict(float)
    for run in runs:
        norms = 0
        last = sum(event["args"]["op_name"].endswith("LayerNormalization") for event in run) // LAYER_NORMS
        for event in run:
            operator, spent_ms = event["args"]["op_name"], event["dur"] / 1e3 / len(runs)
            norms += operator.endswith("LayerNormalization")
            kinds[_kind(operator, event["args"].get("input_type_shape", []))] += spent_ms
            layer = (norms - 1) // LAYER_NORMS
            layers["embedding" if not norms else "head" if layer == last else f"layer {layer}"] += spent_ms
    return {"by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1])), "by_layer": dict(layers)}


def _kind(operator: str, inputs: list[dict[str, list[int]]]) -> str:
    """By its operator; a MatMul with a matrix of weights, or packed ones, which have no shape, is a projection."""
    if operator == "MatMul" and [len(shape) for each in inputs[1:2] for shape in each.values()] in ([2], []):
        return "projections and MLPs"
    return next((kind for kind, operators in KINDS.items() if operator in operators), "other")


def _start(event: dict[str, Any]) -> float:
    return float(event["ts"])


def table(found: dict[str, dict[str, float]]) -> str:
    """As Markdown."""
    lines = []
    for title, part in (("kind of operator", found["by_kind"]), ("layer", found["by_layer"])):
        total = sum(part.values())
        lines += [f"| {title} | share of the time |", "|---|---|"]
        lines += [f"| {name} | {100 * spent_ms / total:.1f} % |" for name, spent_ms in part.items()]
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument("--size", type=int, help="input size in px; default: the full one")
    parser.add_argument("--threshold", type=float, default=0.0, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32", help="(%(default)s)")
    options = parser.parse_args(argv)
    try:
        bundle = load_bundle(options.bundle)
        size_px = options.size or bundle.manifest.full.size_px
        if size_px not in bundle.manifest.sizes_px:
            raise ValueError(f"{bundle.manifest.name} has no input size {size_px} px")
        pixels = image_array(load_images(options.images or str(options.bundle / "samples"), "test", 1), size_px)
        images = np.resize(pixels, (options.batch_size, *pixels.shape[1:]))
        found = profile(bundle, images, options.threshold, options.precision)
    except (ServiceError, DataError, ValueError) as error:
        print(f"export.profile: {error}", file=sys.stderr)
        return 2
    print(table(found))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
