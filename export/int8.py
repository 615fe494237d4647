"""The int8 graphs of a bundle: what their activations span is observed once, on held-out training images, and kept.

`int8.json` holds it: for each graph, each product's [low, high], and where they were observed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from export.parity import image_array
from export.quantise import Range, observe, products, quantise
from export.to_onnx import ExportError, in_precision, save
from models.data import LabelledImages
from service.artifact import Bundle, Precision
from service.cpu import usable_cpus
from service.onnx_engine import OnnxEngine

RANGES = "int8.json"
IMAGES = 256  # enough for a steady 0.01 %-quantile: each has dozens of tokens of hundreds of values
THRESHOLDS = (0.0, 0.1, 0.25, 0.4, 0.6)  # drawn for each image
AGREEMENT = 0.9  # with float32, for a graph of a lower precision to be written; of thousands of images, over 98 % agree
_BATCH = 32


def observe_all(files: Mapping[int, Path], unseen: LabelledImages) -> dict[str, Any]:
    """What the activations of every graph (by its input size) span on the first of `unseen`; as it is written."""
    chosen = unseen.select(np.arange(min(IMAGES, len(unseen))))
    ranges = {
        file.name: observe(file, _feeds(image_array(replace(chosen, size_px=size_px), size_px)))
        for size_px, file in tqdm(files.items(), desc="observing activations")
    }
    return {
        "images": len(chosen),
        "ranges": {name: {key: [*span] for key, span in spans.items()} for name, spans in ranges.items()},
    }


def write_int8(folder: Path, ranges: dict[str, Any]) -> None:
    """Write the int8 graph beside every graph that `ranges` knows, and the ranges.

    Raises:
        ExportError: they are of another graph.
    """
    for name, spans in ranges["ranges"].items():
        model = onnx.load(folder / name, load_external_data=False)
        if wrong := sorted({product.key for product in products(model)} ^ set(spans)):
            raise ExportError(f"{RANGES} doesn't fit {name} ({wrong[0]}): observe anew with --calibrate DATA")
        save(quantise(model, {key: Range(*span) for key, span in spans.items()}), folder / in_precision(name, "int8"))
    (folder / RANGES).write_text(json.dumps(ranges, indent=1) + "\n")


def check_precision(bundle: Bundle, precision: Precision, images: LabelledImages) -> None:
    """Run every graph of a lower precision on a few real images, on the CPU.

    Raises:
        ExportError: fewer than AGREEMENT of the first labels are those of the float32 graph.
    """
    one, other = (
        OnnxEngine(bundle, threads=usable_cpus(), precision=name, provider="cpu") for name in ("float32", precision)
    )
    for graph in bundle.manifest.graphs:
        pixels = image_array(images, graph.size_px)
        zeros = np.zeros(len(pixels), np.float32)
        first, second = (engine.infer(pixels, zeros).logits.argmax(1) for engine in (one, other))
        if (agreement := float((first == second).mean())) < AGREEMENT:
            name = graph.file_in(precision)
            raise ExportError(f"{name} agrees with {graph.file} on {agreement:.0%} of the images alone")


def _feeds(images: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[Any]]]:
    thresholds = np.random.default_rng(0).choice(np.array(THRESHOLDS, np.float32), len(images))
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        yield {"images": images[rows], "threshold": thresholds[rows]}
