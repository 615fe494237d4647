"""What a lower precision costs: a bundle's int8 or float16 graphs beside its float32 ones, on the same test images.

    python -m export.precision --bundle models/zoo/NAME --data DATA --out models/zoo/NAME/int8-evaluation.json
    python -m export.precision --precision float16 --bundle ... --out models/zoo/NAME/float16-evaluation.json

Both are the served engine. Points are the presets and each input size with nothing skipped. `make export` then takes
the file into the manifest and the card. On a CPU float16 is rounded as on a GPU after every operator, while sums within
one are float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.checkpoint import CheckpointError
from models.data import DataError, load_images, source_name
from service.artifact import Bundle, Precision, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError
from service.macs import used_macs
from service.onnx_engine import OnnxEngine

_BATCH = 32
_LOWER, _FULL = "lower", "float32"


@dataclass
class Tally:
    """Both precisions' answers at one point, image by image."""

    size_px: int
    threshold: float
    right: dict[str, list[bool]] = field(default_factory=lambda: {_LOWER: [], _FULL: []})
    macs: dict[str, list[float]] = field(default_factory=lambda: {_LOWER: [], _FULL: []})
    same_top1: list[bool] = field(default_factory=list)
    same_decisions: list[float] = field(default_factory=list)

    def row(self, full_macs: int) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            "size_px": self.size_px,
            "threshold": self.threshold,
            "images": len(self.same_top1),
            "top1": round(float(np.mean(self.right[_LOWER])), 4),
            "float32_top1": round(float(np.mean(self.right[_FULL])), 4),
            "same_top1": round(float(np.mean(self.same_top1)), 4),
            "same_decisions": round(float(np.mean(self.same_decisions)), 4),
            "macs_ratio": round(float(np.mean(self.macs[_LOWER])) / full_macs, 4),
            "float32_macs_ratio": round(float(np.mean(self.macs[_FULL])) / full_macs, 4),
        }


def points_of(bundle: Bundle) -> list[tuple[int, float]]:
    """The presets, and each size with nothing skipped."""
    presets = [(preset.size_px, preset.threshold) for preset in bundle.manifest.presets.values()]
    return list(dict.fromkeys(presets + [(size_px, 0.0) for size_px in bundle.manifest.sizes_px]))


def measure(bundle: Bundle, precision: Precision, data: str, max_images: int) -> dict[str, Any]:
    """Run both engines over the test images of `data`; BundleError where the bundle has no such graphs."""
    manifest = bundle.manifest
    named: dict[str, Precision] = {_LOWER: precision, _FULL: "float32"}
    engines = {name: OnnxEngine(bundle, threads=usable_cpus(), precision=each) for name, each in named.items()}
    gated = list(manifest.gated_layers)
    rows, count = [], 0
    for size_px, threshold in tqdm(points_of(bundle), desc="points"):
        images = load_images(data, "test", size_px)
        if images.labels != manifest.labels:
            raise DataError(f"{data} has other classes than the model: {images.labels[:3]} ...")
        if max_images:
            images = images.select(np.arange(min(max_images, len(images))))
        count, tally = len(images), Tally(size_px, threshold)
        for pixels, labels in tqdm(images.batches(_BATCH), desc=f"{size_px} px at {threshold:g}", leave=False):
            limit = np.full(len(pixels), threshold, np.float32)
            found = {name: engine.infer(pixels.numpy(), limit) for name, engine in engines.items()}
            first: dict[str, NDArray[np.int64]] = {name: out.logits.argmax(1) for name, out in found.items()}
            for name, out in found.items():
                tally.right[name] += (first[name] == labels.numpy()).tolist()
                tally.macs[name] += used_macs(manifest.graph(size_px), out.kept.sum(-1), threshold > 0).tolist()
            tally.same_top1 += (first[_LOWER] == first[_FULL]).tolist()
            same = found[_LOWER].kept[:, gated] == found[_FULL].kept[:, gated]
            tally.same_decisions += same.mean((1, 2)).tolist()
        rows.append(tally.row(manifest.full.dense_macs))
    return {
        "data": source_name(data),
        "images": count,
        "version": manifest.version,
        "provider": engines[_LOWER].execution.providers[0],
        "rows": rows,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person."""
    lines = ["  px threshold       top-1  float32  same top-1  same decisions       MACs  float32"]
    for row in rows:
        lines.append(
            f"{row['size_px']:4d} {row['threshold']:9.2f} {100 * row['top1']:10.2f}% {100 * row['float32_top1']:7.2f}% "
            f"{100 * row['same_top1']:10.2f}% {100 * row['same_decisions']:14.2f}% {100 * row['macs_ratio']:9.1f}% "
            f"{100 * row['float32_macs_ratio']:7.1f}%"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", required=True, help="parquet folder, image folder or hub name, with a test split")
    parser.add_argument("--precision", choices=["int8", "float16"], default="int8", help="(%(default)s)")
    parser.add_argument("--max-images", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    try:
        result = measure(load_bundle(options.bundle), options.precision, options.data, options.max_images)
    except (ServiceError, CheckpointError, DataError, ValueError) as error:
        print(f"export.precision: {error}", file=sys.stderr)
        return 2
    print(table(result["rows"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
