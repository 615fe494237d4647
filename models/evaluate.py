"""Evaluate a checkpoint on images it never saw: one row for each pair of input size and score threshold.

    python -m models.evaluate --checkpoint runs/joint --data DATA --sizes 112,84,56
    python -m models.evaluate --bundle models/zoo/NAME --data DATA

A checkpoint is run by torch, a bundle by the served engine (its graphs in ONNX Runtime). Columns: mean patches skipped
(over images and gated layers), MACs saved against the dense model at the full size, top-1 and top-5 accuracy, and, for
a checkpoint, how often the gates' decisions agree with the cosine labels of the dense forward. A star marks the
frontier: rows that no cheaper one equals. Below: two looks, a smaller size first and a larger one where the first label
is less probable than `sure`. Writes --out (JSON, per-layer figures too) and --predictions (NPZ, one answer for each
image and row); the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from models import checkpoint
from models.checkpoint import CheckpointError
from models.data import DataError, LabelledImages, held_out, load_images, source_name
from models.frontier import frontier
from models.labels import keep_labels
from models.macs import shape_of, used_macs
from models.options import count, device, integers, levels, new_file, positive
from models.preprocessing import normalise
from models.pruned_vit import Execution, PrunedViT
from models.second_look import in_words, lost_error, second_looks

# What is evaluated: pixels (B, S, S, 3) uint8, thresholds (B,) -> logits (B, classes), kept (B, L, P) bool.
Answers = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)


class Tally:
    """Running sums of one threshold's figures at one input size; `row` turns them into the table's row."""

    def __init__(self, threshold: float, model: PrunedViT, full_macs: int) -> None:
        self.threshold, self.shape, self.gated = threshold, shape_of(model), list(model.config.gated_layers)
        self.size_px, self.full_macs = model.config.image_size_px, full_macs
        self.images = self.top1 = self.top5 = self.judged = 0
        self.macs: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.probabilities: list[Tensor] = []
        self.kept = torch.zeros(model.layers, dtype=torch.float64)
        self.agree = torch.zeros(len(self.gated), dtype=torch.float64)

    def add(self, logits: Tensor, kept: Tensor, labels: Tensor, keep: Tensor | None) -> None:
        """Count a batch: logits (B, classes), kept (B, L, P), class labels (B,), keep labels (B, gated, P) if known."""
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == labels[:, None]
        self.images += len(labels)
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.sum())
        self.macs.append(used_macs(self.shape, kept, self.threshold > 0))
        self.answers.append(best[:, 0])
        self.probabilities.append(logits.softmax(1).amax(1))
        self.kept += kept.double().mean(-1).sum(0)
        if keep is not None:
            self.judged += len(labels)
            self.agree += (kept[:, self.gated] == keep).double().mean(-1).sum(0)

    def row(self) -> dict[str, Any]:
        """The figures, rounded for the reader; `keep_per_layer` has all layers, gate accuracies are of gated ones."""
        macs = torch.cat(self.macs).double() / self.full_macs
        keep_share = self.kept / self.images
        skipped = (1 - keep_share[self.gated]) * self.shape.patches
        agree = (self.agree / self.judged).tolist() if self.judged else []
        return {
            "size_px": self.size_px,
            "threshold": self.threshold,
            "images": self.images,
            "skipped_patches": round(float(skipped.mean()), 2) if self.gated else 0.0,
            "macs_ratio": round(float(macs.mean()), 4),
            "macs_ratio_p10": round(float(macs.quantile(0.1)), 4),
            "macs_ratio_p90": round(float(macs.quantile(0.9)), 4),
            "top1": round(self.top1 / self.images, 4),
            "top5": round(self.top5 / self.images, 4),
            "gate_accuracy": round(sum(agree) / len(agree), 4) if agree else None,
            "keep_per_layer": [round(value, 4) for value in keep_share.tolist()],
            "gate_accuracy_per_layer": [round(value, 4) for value in agree],
        }

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Of each image: the answer (class index), its probability, and the share of the full dense MACs it took."""
        return {
            "answer": torch.cat(self.answers).numpy().astype(np.int16),
            "probability": torch.cat(self.probabilities).numpy().astype(np.float32),
            "macs_ratio": (torch.cat(self.macs).double() / self.full_macs).numpy().astype(np.float32),
        }


@torch.inference_mode()
def evaluate(
    model: PrunedViT,
    images: LabelledImages,
    thresholds: tuple[float, ...],
    cosine_threshold: float,
    batch_size: int = 32,
    *,
    full_macs: int | None = None,
    workers: int = 0,
    served: Answers | None = None,
) -> list[Tally]:
    """Figures of one model at its own input size, one tally a threshold, through torch's sparse path.

    With `served` that answers instead: `model` gives the costs alone, and its gates aren't judged.
    """
    tallies = [Tally(threshold, model, full_macs or shape_of(model).dense) for threshold in thresholds]
    device, title = next(model.parameters()).device, f"{model.config.image_size_px} px"
    answers = served or sparse_answers(model)
    for batch, labels in tqdm(images.batches(batch_size, workers=workers), desc=title, unit="batch", mininterval=2):
        pixels = batch.to(device)
        keep = None if served or not model.config.gated_layers else cosine_labels(model, pixels, cosine_threshold)
        for tally in tallies:
            logits, kept = answers(pixels, torch.full((len(pixels),), tally.threshold, device=device))
            tally.add(logits.cpu(), kept.cpu(), labels, keep)
    return tallies


def sparse_answers(model: PrunedViT) -> Answers:
    """A model's own, through the sparse path."""

    execution: Execution = "masked" if model.config.scaled else "sparse"

    def answers(pixels: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        out = model(normalise(pixels, model.config.mean, model.config.std), threshold, execution)
        return out.logits, out.kept

    return answers


def cosine_labels(model: PrunedViT, pixels: Tensor, cosine_threshold: float) -> Tensor:
    """The labels of the gated layers on the dense trajectory: uint8 images -> (B, gated, P) bool, on the CPU."""
    prefix = model.vit.num_prefix_tokens
    hidden = model.trajectory(normalise(pixels, model.config.mean, model.config.std)).hidden
    pairs = [(hidden[i][:, prefix:], hidden[i + 1][:, prefix:]) for i in model.config.gated_layers]
    return torch.stack([keep_labels(before, after, cosine_threshold) for before, after in pairs], 1).cpu()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a person."""
    best = frontier(rows)
    head = f"{'px':>4} {'threshold':>9} {'skipped':>8} {'MACs decrease':>13} {'top-1':>8} {'top-5':>8} {'gates':>7}"
    lines = [
        f"{row['size_px']:4} {row['threshold']:9.2f} {row['skipped_patches']:8.1f} "
        f"{100 * (1 - row['macs_ratio']):11.1f} % {100 * row['top1']:6.2f} % {100 * row['top5']:6.2f} % "
        + ("      -" if row["gate_accuracy"] is None else f"{100 * row['gate_accuracy']:5.1f} %")
        + (" *" if row in best else "")
        for row in rows
    ]
    return "\n".join([head, *lines, "* no cheaper row is as accurate; gates: agreement with the cosine labels"])


def layer_table(rows: list[dict[str, Any]], gated_layers: tuple[int, ...]) -> str:
    """Each gated layer's kept share, and gate accuracy where it is known, in percent, for a person."""
    lines = ["per gated layer, kept % / gate accuracy %", " " * 14 + "".join(f"{layer:>9}" for layer in gated_layers)]
    for row in rows:
        cells = [f"{100 * row['keep_per_layer'][layer]:.0f}" for layer in gated_layers]
        for i, accuracy in enumerate(row["gate_accuracy_per_layer"]):
            cells[i] += f"/{100 * accuracy:.0f}"
        lines.append(f"{row['size_px']:4} {row['threshold']:9.2f}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--checkpoint", type=Path, help="checkpoint folder (or bundle), run by torch")
    subject.add_argument("--bundle", type=Path, help="model bundle, run as it is served")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32", help="of a bundle's graphs")
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--split", choices=["test", "heldout"], default="test", help="heldout: of the training images")
    parser.add_argument("--holdout-ratio", type=float, default=0.05, help="as in training, for --split heldout")
    parser.add_argument("--sizes", type=integers, help="input sizes, px, with commas; default: own, or the bundle's")
    parser.add_argument("--max-images", type=count, default=0, help="0: all")
    parser.add_argument("--thresholds", type=levels, default=THRESHOLDS)
    parser.add_argument("--cosine-threshold", type=float, default=0.8, help="of the labels the gates are judged by")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--device", type=device, default="auto", help="torch's; auto: cuda where there is one")
    parser.add_argument("--workers", type=count, default=0, help="processes that decode images; 0: none of their own")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    parser.add_argument("--predictions", type=new_file, help="NPZ file to write: every image's answer in every row")
    return parser.parse_args(argv)


def load_split(data: str, split: str, size_px: int, holdout: float, folder: Path) -> LabelledImages:
    """`test`, or the training images that the checkpoint in `folder` never saw."""
    if split == "test":
        return load_images(data, "test", size_px)
    training = checkpoint.read_summary(folder) if (folder / checkpoint.TRAINING).exists() else {}
    return held_out(load_images(data, "train", size_px), holdout, training)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Evaluate what the options name: the result as it is written to --out, and every image's answers."""
    folder: Path = options.bundle or options.checkpoint
    trained = checkpoint.load(folder)
    sizes: tuple[int, ...] = options.sizes or (trained.config.image_size_px,)
    served, place = None, options.device
    runtime = f"torch {torch.__version__.split('+')[0]}, float32, sparse path"
    if options.bundle:
        from export.served import open_bundle  # here alone, for rooms apart: whoever trains needs no ONNX Runtime

        (own, served, runtime), place = open_bundle(options.bundle, options.precision), "cpu"
        sizes = options.sizes or own
        if not set(sizes) <= set(own):
            asked, there = (", ".join(map(str, each)) for each in (sizes, own))
            raise ValueError(f"--sizes {asked}: {options.bundle} has {there} px")
    full = shape_of(trained)
    tallies, labels = [], np.zeros(0, np.int16)
    for size_px in sizes:
        model = checkpoint.at_size(trained, size_px).to(place)
        images = load_split(options.data, options.split, size_px, options.holdout_ratio, folder)
        images.check_classes(model.config.labels, "the model")
        if options.max_images:
            images = images.spread(options.max_images)
        labels = np.asarray(images.rows[images.label_column], np.int16)
        tallies += evaluate(
            model,
            images,
            options.thresholds,
            options.cosine_threshold,
            options.batch_size,
            full_macs=full.dense,
            workers=options.workers,
            served=served,
        )
    found = [tally.predictions() for tally in tallies]
    predictions = {name: np.stack([each[name] for each in found]) for name in found[0]}  # (rows, images)
    predictions |= {"label": labels, "point": np.array([(tally.size_px, tally.threshold) for tally in tallies])}
    result = {
        "data": source_name(options.data),
        "split": options.split,
        "images": len(labels),
        "image_size_px": trained.config.image_size_px,
        "attention": trained.config.attention,
        "gated_layers": list(trained.config.gated_layers),
        "cosine_threshold": options.cosine_threshold,
        "patches": full.patches,
        "dense_macs": full.dense,
        "timm_forward_macs": full.timm_forward,
        "device": place,
        "runtime": runtime,
        "rows": [tally.row() for tally in tallies],
    }
    return compared(result, predictions), predictions


def compared(result: dict[str, Any], predictions: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The result with what takes every image's answers: what two looks give, and the standard error of points lost."""
    points, right = predictions["point"], predictions["answer"] == predictions["label"]
    full = np.flatnonzero((points == (result["image_size_px"], 0.0)).all(1))
    if not len(full):  # nothing to compare with
        return result | {"second_looks": []}
    rows = [
        row | {"lost_error": round(lost_error(own, right[full[0]]), 5)}
        for row, own in zip(result["rows"], right, strict=True)
    ]
    costs = predictions["probability"], predictions["macs_ratio"]
    twice = second_looks(points, right, *costs, result["image_size_px"])
    return result | {"rows": rows, "second_looks": twice}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    options = parse(argv)
    try:
        result, predictions = measure(options)
    except (DataError, CheckpointError, ValueError) as error:
        print(f"models.evaluate: {error}", file=sys.stderr)
        return 2
    print(table(result["rows"]))
    print(layer_table(result["rows"], tuple(result["gated_layers"])))
    if result["second_looks"]:
        print(in_words(result["second_looks"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.predictions:
        np.savez_compressed(options.predictions, allow_pickle=False, **predictions)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
