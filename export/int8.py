"""The int8 graph of a bundle: what its activations span is observed once, on held-out training images, and kept.

`int8.json` holds it: each product's [low, high], over all input sizes, and how many images they were observed on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
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
from service.engine import Engine, check_output
from service.errors import InferenceFailed
from service.onnx_engine import OnnxEngine

RANGES = "int8.json"
IMAGES = 256  # enough for a steady 0.01 %-quantile: each has dozens of tokens of hundreds of values
THRESHOLDS = (0.0, 0.1, 0.25, 0.4, 0.6)  # drawn for each image
AGREEMENT = 0.9  # with float32, for a graph of a lower precision to be written; of thousands of images, over 98 % agree
ENOUGH = 32  # images that are judged as they agree
_BATCH = 32
_WITHOUT = f"leave int8 out: without --calibrate, and no {RANGES} in the checkpoint's folder"
_RANGE = "float16 ends at 65504 and has three digits: too little for this model's activations"


def observe_all(file: Path, sizes_px: Sequence[int], unseen: LabelledImages) -> dict[str, Any]:
    """What the activations of a graph span on the first of `unseen`, at every input size; as it is written."""
    chosen = unseen.select(np.arange(min(IMAGES, len(unseen))))
    feeds = (
        feed
        for size_px in tqdm(sizes_px, desc="observing activations")
        for feed in _feeds(image_array(replace(chosen, size_px=size_px), size_px))
    )
    return {"images": len(chosen), "ranges": {key: [*span] for key, span in observe(file, feeds).items()}}


def write_int8(file: Path, ranges: dict[str, Any]) -> None:
    """Write the int8 form of a graph beside it, and the ranges.

    Raises:
        ExportError: they are of another graph.
    """
    model, spans = onnx.load(file, load_external_data=False), ranges["ranges"]
    if wrong := sorted({key for product in products(model) for key in product.keys} ^ set(spans)):
        raise ExportError(f"{RANGES} doesn't fit {file.name} ({wrong[0]}): observe anew with --calibrate DATA")
    int8 = quantise(model, {key: Range(*span) for key, span in spans.items()})
    save(int8, file.with_name(in_precision(file.name, "int8")))
    file.with_name(RANGES).write_text(json.dumps(ranges, indent=1) + "\n")


def check_precision(bundle: Bundle, precision: Precision, images: LabelledImages) -> None:
    """Run a lower precision on a few real images at every size, on the CPU.

    Raises:
        ExportError: it gives no logits, or plainly fewer than AGREEMENT of the first labels are the float32 graph's.
    """
    one, other = (
        OnnxEngine(bundle, threads=usable_cpus(), precision=name, provider="cpu") for name in ("float32", precision)
    )
    for graph in bundle.manifest.graphs:
        check_labels(one, other, precision, image_array(images, graph.size_px))


def check_labels(one: Engine, other: Engine, precision: Precision, pixels: NDArray[np.uint8]) -> None:
    """Compare two engines' first labels of images (n, S, S, 3); ExportError as `check_precision` has it."""
    where, mend, labels = f"at {pixels.shape[1]} px", _WITHOUT if precision == "int8" else _RANGE, []
    try:
        for engine in (one, other):
            output = engine.infer(pixels, np.zeros(len(pixels), np.float32))
            check_output(output, rows=len(pixels))
            labels.append(output.logits.argmax(1))
    except InferenceFailed as error:
        raise ExportError(f"{where} the {precision} graph fails ({error}): {mend}") from error
    if plainly_fewer(same := int((labels[0] == labels[1]).sum()), len(pixels)):
        few = f"{same} of {len(pixels)} images alone"
        raise ExportError(f"{where} {precision} agrees with float32 on {few}: give more --images; if it stays: {mend}")


def plainly_fewer(same: int, images: int) -> bool:
    """Whether fewer than AGREEMENT agree, and of few images so few that chance says it once in 40 times at most.

    That is two standard errors, exactly, of a graph that agrees on AGREEMENT of all images: of 4, one that doesn't
    says nothing. Graphs that are sound agree on over 98 %, so of ENOUGH images chance doesn't make them fail.
    """
    if images >= ENOUGH:
        return same < AGREEMENT * images
    ways = (math.comb(images, k) * AGREEMENT**k * (1 - AGREEMENT) ** (images - k) for k in range(same + 1))
    return sum(ways) < 0.025


def _feeds(images: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[Any]]]:
    thresholds = np.random.default_rng(0).choice(np.array(THRESHOLDS, np.float32), len(images))
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        yield {"images": images[rows], "threshold": thresholds[rows]}
