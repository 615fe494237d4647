"""Evaluate a checkpoint on images it never saw: the write-up's table, one row a score threshold.

    python -m models.evaluate --checkpoint models/zoo/cifar100-vits14 --data DATA

Columns: mean patches skipped (over images and gated layers), MACs saved against the dense model, top-1 and top-5
accuracy, and how often the gates' decisions agree with the cosine labels, made from the same pruned forward's dense
twin. Writes --out (JSON, per-layer figures too); the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import checkpoint
from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, load_images, source_name, split_holdout
from models.labels import keep_labels
from models.macs import Shape, shape_of, used_macs
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT

THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


class Tally:
    """Running sums of one threshold's figures; `row` turns them into the table's row."""

    def __init__(self, threshold: float, model: PrunedViT) -> None:
        self.threshold, self.shape, self.gated = threshold, shape_of(model), list(model.config.gated_layers)
        self.images = self.top1 = self.top5 = 0
        self.macs: list[Tensor] = []
        self.kept = torch.zeros(model.layers, dtype=torch.float64)
        self.agree = torch.zeros(len(self.gated), dtype=torch.float64)

    def add(self, logits: Tensor, kept: Tensor, labels: Tensor, keep: Tensor) -> None:
        """Count a batch: logits (B, classes), kept (B, L, P), class labels (B,), keep labels (B, gated, P)."""
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == labels[:, None]
        self.images += len(labels)
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.sum())
        self.macs.append(used_macs(self.shape, kept))
        self.kept += kept.double().mean(-1).sum(0)
        self.agree += (kept[:, self.gated] == keep).double().mean(-1).sum(0)

    def row(self) -> dict[str, Any]:
        """The figures, rounded for the reader; `*_per_layer` follow the layers, or the gated layers."""
        macs = torch.cat(self.macs).double() / self.shape.dense
        keep_share = self.kept / self.images
        skipped = (1 - keep_share[self.gated]) * self.shape.patches
        return {
            "threshold": self.threshold,
            "images": self.images,
            "skipped_patches": round(float(skipped.mean()), 2) if self.gated else 0.0,
            "macs_ratio": round(float(macs.mean()), 4),
            "macs_ratio_p10": round(float(macs.quantile(0.1)), 4),
            "macs_ratio_p90": round(float(macs.quantile(0.9)), 4),
            "top1": round(self.top1 / self.images, 4),
            "top5": round(self.top5 / self.images, 4),
            "gate_accuracy": round(float((self.agree / self.images).mean()), 4) if self.gated else 1.0,
            "keep_per_layer": [round(value, 4) for value in keep_share.tolist()],
            "gate_accuracy_per_layer": [round(value, 4) for value in (self.agree / self.images).tolist()],
        }


@torch.inference_mode()
def evaluate(
    model: PrunedViT,
    images: LabelledImages,
    thresholds: tuple[float, ...],
    cosine_threshold: float,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Rows of the table, one a threshold, through the sparse path."""
    tallies = [Tally(threshold, model) for threshold in thresholds]
    device = next(model.parameters()).device
    for pixels, labels in tqdm(images.batches(batch_size), desc="evaluate", unit="batch", mininterval=2):
        x = normalise(pixels.to(device), model.config.mean, model.config.std)
        keep = cosine_labels(model, x, cosine_threshold).cpu()
        for tally in tallies:
            out = model(x, torch.full((len(x),), tally.threshold, device=device), "sparse")
            tally.add(out.logits.cpu(), out.kept.cpu(), labels, keep)
    return [tally.row() for tally in tallies]


def cosine_labels(model: PrunedViT, x: Tensor, cosine_threshold: float) -> Tensor:
    """The labels of the gated layers on the dense trajectory: normalised images -> (B, gated, P) bool."""
    prefix, hidden = model.vit.num_prefix_tokens, model.trajectory(x).hidden
    pairs = [(hidden[i][:, prefix:], hidden[i + 1][:, prefix:]) for i in model.config.gated_layers]
    if not pairs:
        return torch.ones(len(x), 0, model.patches, dtype=torch.bool)
    return torch.stack([keep_labels(before, after, cosine_threshold) for before, after in pairs], 1)


def table(rows: list[dict[str, Any]], shape: Shape) -> str:
    """The rows for a person."""
    skipped = f"skipped of {shape.patches}"
    head = f"{'threshold':>9} {skipped:>14} {'MACs decrease':>13} {'top-1':>7} {'top-5':>7} {'gate accuracy':>13}"
    lines = [
        f"{row['threshold']:9.2f} {row['skipped_patches']:14.1f} {100 * (1 - row['macs_ratio']):11.1f} % "
        f"{100 * row['top1']:6.2f}% {100 * row['top5']:6.2f}% {100 * row['gate_accuracy']:12.1f}%"
        for row in rows
    ]
    return "\n".join([head, *lines])


def layer_table(rows: list[dict[str, Any]], gated_layers: tuple[int, ...]) -> str:
    """Each gated layer's kept share and gate accuracy, in percent, for a person."""
    lines = ["per gated layer, kept % / gate accuracy %", " " * 9 + "".join(f"{layer:>9}" for layer in gated_layers)]
    for row in rows:
        pairs = zip(gated_layers, row["gate_accuracy_per_layer"], strict=True)
        cells = (f"{100 * row['keep_per_layer'][layer]:.0f}/{100 * accuracy:.0f}" for layer, accuracy in pairs)
        lines.append(f"{row['threshold']:9.2f}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", "--bundle", type=Path, required=True, help="checkpoint folder or model bundle")
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--split", choices=["test", "heldout"], default="test", help="heldout: of the training images")
    parser.add_argument("--holdout-ratio", type=float, default=0.05, help="as in training, for --split heldout")
    parser.add_argument("--image-size", type=int, help="side of the input, px; default: the model's own")
    parser.add_argument("--max-images", type=int, default=0, help="0: all")
    parser.add_argument("--thresholds", default=",".join(map(str, THRESHOLDS)))
    parser.add_argument("--cosine-threshold", type=float, default=0.8, help="of the labels the gates are judged by")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args(argv)


def load_split(data: str, split: str, size_px: int, holdout: float) -> LabelledImages:
    """`test`, or the training images that no training run saw."""
    if split == "test":
        return load_images(data, "test", size_px)
    return split_holdout(load_images(data, "train", size_px), holdout)[1]


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], Shape]:
    """Evaluate what the options name; the result as it is written to --out, and the model's shape."""
    thresholds = tuple(float(value) for value in options.thresholds.split(","))
    model = checkpoint.load(options.checkpoint)
    model = checkpoint.at_size(model, options.image_size or model.config.image_size_px).to(options.device)
    images = load_split(options.data, options.split, model.config.image_size_px, options.holdout_ratio)
    if images.labels != model.config.labels:
        raise DataError(f"{options.data} has other classes than the model: {images.labels[:3]} ...")
    if options.max_images:
        images = images.select(np.arange(min(options.max_images, len(images))))
    rows = evaluate(model, images, thresholds, options.cosine_threshold, options.batch_size)
    shape = shape_of(model)
    result = {
        "data": source_name(options.data),
        "split": options.split,
        "image_size_px": model.config.image_size_px,
        "images": len(images),
        "attention": model.config.attention,
        "cosine_threshold": options.cosine_threshold,
        "patches": shape.patches,
        "dense_macs": shape.dense,
        "device": options.device,
        "torch": torch.__version__.split("+")[0],
        "rows": rows,
    }
    return result, shape


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        result, shape = measure(options)
    except (DataError, CheckpointError, ValueError) as error:
        print(f"models.evaluate: {error}", file=sys.stderr)
        return 2
    print(table(result["rows"], shape))
    print(layer_table(result["rows"], shape.gated_layers))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
