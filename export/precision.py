"""What a lower precision costs: a bundle's int8 or float16 graphs beside its float32 ones, on the same test images.

    python -m export.precision --bundle models/zoo/NAME --data DATA --out models/zoo/NAME/int8-evaluation.json
    python -m export.precision --precision float16 --bundle ... --out models/zoo/NAME/float16-evaluation.json

Both are the served engine. Points are the presets, each input size with nothing skipped, two looks from each smaller
one (at the full one and at the largest), and patches skipped: at the full size from few to most, at smaller ones some.
`python -m export --keep-graphs` then takes the file into the manifest and the card. On a CPU float16 is rounded as on a
GPU after every operator, while sums within one are float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, load_images, source_name
from models.options import count, new_file
from service.artifact import Bundle, Manifest, Precision, load_bundle
from service.budget import Choice, second_of
from service.cpu import usable_cpus
from service.errors import ServiceError
from service.macs import used_macs
from service.onnx_engine import OnnxEngine
from service.results import softmax

_BATCH = 32
SKIPPING = 0.25  # threshold at which gates are compared at every size; the bundled model skips a good quarter there
FEW_TO_MOST = (0.1, SKIPPING, 0.4, 0.6)  # at the full size
SURE = 0.5  # probability that is enough where no preset says: more likely than not; nobody tuned it


class Seen(NamedTuple):
    """One engine's answers to n images at one pair of input size and threshold."""

    right: NDArray[np.bool_]  # (n,)
    first: NDArray[np.int64]  # (n,) the first label
    probability: NDArray[np.float32]  # (n,) of it
    kept: NDArray[np.bool_]  # (n, gated, P)
    macs: NDArray[np.float64]  # (n,)

    def again(self, full: Seen, sure: float) -> Seen:
        """Two looks: `full` where this one isn't sure; the decision is whether to look again, as `kept` (n, 1, 1)."""
        unsure = self.probability < sure
        return Seen(
            np.where(unsure, full.right, self.right),
            np.where(unsure, full.first, self.first),
            np.where(unsure, full.probability, self.probability),
            unsure[:, None, None],
            self.macs + unsure * full.macs,
        )


def points_of(bundle: Bundle) -> list[Choice]:
    """The presets, each size with nothing skipped, two looks from smaller ones, the full one with patches skipped."""
    manifest = bundle.manifest
    presets = [Choice(preset.size_px, preset.threshold, preset.sure) for preset in manifest.presets.values()]
    once = [Choice(size_px, 0.0) for size_px in manifest.sizes_px]
    full_px, largest_px = manifest.full.size_px, max(manifest.sizes_px)
    twice = [Choice(size_px, 0.0, SURE) for size_px in manifest.sizes_px if size_px < full_px]
    if largest_px > full_px:
        twice += [Choice(size_px, 0.0, SURE, largest_px) for size_px in manifest.sizes_px if size_px < full_px]
    return list(dict.fromkeys([*presets, *once, *twice, Choice(full_px, SKIPPING)]))


def gated_points_of(bundle: Bundle) -> list[Choice]:
    """Where masks are compared as well: the full size from few patches skipped to most, smaller ones with some."""
    sizes_px, full_px = bundle.manifest.sizes_px, bundle.manifest.full.size_px
    levels = [Choice(full_px, threshold) for threshold in FEW_TO_MOST]
    return levels + [Choice(size_px, SKIPPING) for size_px in sizes_px if size_px < full_px]


def see(engine: OnnxEngine, images: LabelledImages, manifest: Manifest, size_px: int, threshold: float) -> Seen:
    """Run an engine over images of one size."""
    parts, graph, gated = [], manifest.graph(size_px), list(manifest.gated_layers)
    title = f"{size_px} px at {threshold:g}"
    for pixels, labels in tqdm(images.batches(_BATCH), desc=title, leave=False, mininterval=2):
        out = engine.infer(pixels.numpy(), np.full(len(pixels), threshold, np.float32))
        first = out.logits.argmax(1)
        macs = used_macs(graph, out.kept.sum(-1), threshold > 0).astype(np.float64)
        parts.append(Seen(first == labels.numpy(), first, softmax(out.logits).max(1), out.kept[:, gated], macs))
    return Seen(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def measure(bundle: Bundle, precision: Precision, data: str, max_images: int) -> dict[str, Any]:
    """Run both engines over the test images of `data`; BundleError where the bundle has no such graphs."""
    manifest, points = bundle.manifest, list(dict.fromkeys(points_of(bundle) + gated_points_of(bundle)))
    kinds: tuple[Precision, Precision] = (precision, "float32")
    engines = [OnnxEngine(bundle, threads=usable_cpus(), precision=each) for each in kinds]
    seen: dict[tuple[int, float], list[Seen]] = {}
    looks = {point: second_of(manifest, point) for point in points}
    pairs = [look[:2] for look in (*points, *looks.values()) if look is not None]
    count = 0
    for size_px, threshold in tqdm(dict.fromkeys(pairs), desc="points"):
        images = load_images(data, "test", size_px)
        images.check_classes(manifest.labels, "the model")
        if max_images:
            images = images.select(np.arange(min(max_images, len(images))))
        count = len(images)
        seen[size_px, threshold] = [see(engine, images, manifest, size_px, threshold) for engine in engines]
    rows = []
    for point in points:
        lower, full = seen[point.size_px, point.threshold]
        if (again := looks[point]) is not None:
            second = seen[again[:2]]
            lower, full = (one.again(two, point.sure) for one, two in zip((lower, full), second, strict=True))
        rows.append(row_of(point, lower, full, manifest.full.dense_macs))
    return {
        "data": source_name(data),
        "images": count,
        "version": manifest.version,
        "provider": engines[0].execution.providers[0],
        "rows": rows,
    }


def row_of(point: Choice, lower: Seen, float32: Seen, dense_macs: int) -> dict[str, Any]:
    """Both precisions at one point, as the manifest has it."""
    return {
        **point._asdict(),
        "images": len(lower.right),
        "top1": round(float(lower.right.mean()), 4),
        "float32_top1": round(float(float32.right.mean()), 4),
        "same_top1": round(float((lower.first == float32.first).mean()), 4),
        "same_decisions": round(float((lower.kept == float32.kept).mean()), 4),
        "macs_ratio": round(float(lower.macs.mean()) / dense_macs, 4),
        "float32_macs_ratio": round(float(float32.macs.mean()) / dense_macs, 4),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person."""
    lines = ["  px threshold  sure       top-1  float32  same top-1  same decisions       MACs  float32"]
    for row in rows:
        lines.append(
            f"{row['size_px']:4d} {row['threshold']:9.2f} {row['sure']:5.2f} "
            f"{100 * row['top1']:10.2f}% {100 * row['float32_top1']:7.2f}% "
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
    parser.add_argument("--max-images", type=count, default=0, help="of the test split; 0: all")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
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
