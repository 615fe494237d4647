"""The published method's table on a backbone of ours: gates on cosine labels, in both attention modes, and an oracle.

    python -m models.published --runs DIR/published --data DATA --out FOLDER

DIR/published is what `make -f models/study.mk published` makes: a checkpoint for each cosine threshold, of gates that
learned alone on one frozen backbone. The oracle is what gates without a fault would reach: each layer's own label.
Costs are shares of the backbone's own, points lost are against it on the same test images. The table becomes
`published` in FOLDER's results.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from tqdm import tqdm

from models import checkpoint
from models.checkpoint import CheckpointError
from models.config import Attention
from models.data import DataError, LabelledImages, load_images, source_name
from models.evaluate import Tally
from models.labels import scaled_cosine_similarity
from models.macs import shape_of
from models.options import count, positive
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT, build
from models.results import FILE, dumps
from models.second_look import lost_error
from models.short_runs import training_of

SCORE_THRESHOLD = 0.5  # of the published gates
ORACLE = "cosine"  # of GATES
LABELLED = (0.95, 0.9, 0.85, 0.83, 0.82, 0.81, 0.8, 0.79, 0.78)  # cosine thresholds whose skip labels are counted
# Of the method's write-up: ViT-B/16, CIFAR-100, 224 px.
WRITE_UP = {
    "patches": 196,
    "dense_top1": 0.898,
    "rows": [
        {"attention": "kept_only", "cosine_threshold": 0.95, "skipped_patches": 40, "macs_ratio": 0.8, "top1": 0.852},
        {"attention": "kept_only", "cosine_threshold": 0.9, "skipped_patches": 68, "macs_ratio": 0.65, "top1": 0.77},
        {
            "attention": "full_context",
            "cosine_threshold": 0.95,
            "skipped_patches": 40,
            "macs_ratio": 0.84,
            "top1": 0.854,
        },
    ],
}

Row = dict[str, Any]


class Contender(NamedTuple):
    """A model with its rule, and what is counted of it at its score threshold."""

    model: PrunedViT
    cosine_threshold: float  # of the labels that it follows
    tally: Tally

    def row(self) -> Row:
        """Its line of the table."""
        found, config = self.tally.row(), self.model.config
        columns = ("skipped_patches", "macs_ratio", "top1", "gate_accuracy", "keep_per_layer")
        return {
            "gate": "oracle" if config.gate == ORACLE else "learned",
            "attention": config.attention,
            "cosine_threshold": self.cosine_threshold,
            "score_threshold": self.tally.threshold,
        } | {name: found[name] for name in columns}


def contend(model: PrunedViT, attention: Attention, cosine_threshold: float, gate: str | None = None) -> Contender:
    """`model` in an attention mode, with its own gates or with others that have nothing to learn."""
    config = replace(model.config, attention=attention, gate=gate or model.config.gate)
    other, own = build(config), model.state_dict()
    other.load_state_dict({name: own[name] for name in other.state_dict()})
    score = 1 - cosine_threshold if gate == ORACLE else SCORE_THRESHOLD
    return Contender(other.eval(), cosine_threshold, Tally(round(score, 6), other, shape_of(model).dense))


def contenders(folders: Sequence[Path], more: Sequence[float] = ()) -> list[Contender]:
    """Each folder's gates, then the oracle at the same cosine thresholds and at `more`; all in every attention mode."""
    models = {
        checkpoint.read_summary(folder)["config"]["cosine_threshold"]: checkpoint.load(folder) for folder in folders
    }
    rules: list[tuple[PrunedViT, float, str | None]] = [(model, cosine, None) for cosine, model in models.items()]
    rules += [(next(iter(models.values())), cosine, ORACLE) for cosine in sorted({*models, *more}, reverse=True)]
    return [
        contend(model, attention, cosine, gate) for model, cosine, gate in rules for attention in get_args(Attention)
    ]


@torch.inference_mode()
def measure(found: Sequence[Contender], images: LabelledImages, batch_size: int) -> Row:
    """All contenders on the same images, beside the backbone computed in full."""
    model, right, labels = found[0].model, [], []
    prefix, config, skipped = model.vit.num_prefix_tokens, model.config, torch.zeros(len(LABELLED))
    for pixels, names in tqdm(images.batches(batch_size), total=-(-len(images) // batch_size), mininterval=2):
        x = normalise(pixels, config.mean, config.std)
        logits, hidden = model.trajectory(x)
        patches = [state[:, prefix:] for state in hidden]
        similarity = torch.stack([scaled_cosine_similarity(*patches[i : i + 2]) for i in config.gated_layers], 1)
        skipped += torch.stack([(similarity >= cosine).float().sum() for cosine in LABELLED]) / similarity[0].numel()
        right.append(logits.argmax(1) == names)
        labels.append(names)
        for each in found:
            out = each.model(x, torch.full((len(x),), each.tally.threshold), "sparse")
            each.tally.add(out.logits, out.kept, names, similarity < each.cosine_threshold)
    full, truth = torch.cat(right).numpy(), torch.cat(labels).numpy()
    rows = []
    for each in found:
        answers = each.tally.predictions()["answer"] == truth
        lost = {
            "lost_points": 100 * (full.mean() - answers.mean()),
            "standard_error_points": 100 * lost_error(answers, full),
        }
        rows.append(each.row() | {name: round(float(value), 2) for name, value in lost.items()})
    share = (skipped / len(images)).tolist()
    return {
        "images": len(images),
        "image_size_px": config.image_size_px,
        "patches": model.patches,
        "dense_top1": round(float(full.mean()), 4),
        "standard_error_points": round(100 * float(full.std()) / math.sqrt(len(full)), 2),
        "labelled_skip": [
            {"cosine_threshold": cosine, "share": round(each, 4)} for cosine, each in zip(LABELLED, share, strict=True)
        ],
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for runs that are missing or don't fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the gates' checkpoints")
    parser.add_argument("--data", required=True, help="folder of parquet files, image folder or hub name")
    parser.add_argument("--max-images", type=count, default=0, help="0: all")
    parser.add_argument("--oracle", type=float, nargs="*", default=[0.83], help="more cosine thresholds of the oracle")
    parser.add_argument("--batch-size", type=positive, default=50)
    parser.add_argument("--out", type=Path, required=True, help="folder with the results to add to")
    options = parser.parse_args(argv)
    try:
        results = json.loads((options.out / FILE).read_text())
        folders = [file.parent for file in sorted(options.runs.glob(f"*/{checkpoint.TRAINING}"), reverse=True)]
        if not folders:
            raise ValueError(f"{options.runs} has no checkpoint")
        found = contenders(folders, options.oracle)
        images = load_images(options.data, "test", found[0].model.config.image_size_px)
        images.check_classes(found[0].model.config.labels, "the model")
        images = images.select(np.arange(min(options.max_images or len(images), len(images))))
        table = {"data": source_name(options.data), **measure(found, images, options.batch_size)}
    except (DataError, CheckpointError, OSError, ValueError) as error:
        print(f"models.published: {error}", file=sys.stderr)
        return 2
    trainings = [training_of(checkpoint.read_summary(folder)) for folder in folders]
    results["published"] = table | {"training": trainings[0], "write_up": WRITE_UP}
    (options.out / FILE).write_text(dumps(results))
    print(options.out / FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
