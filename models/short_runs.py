"""Short runs, one change each, judged on held-out training images: what `models.results` says of a folder of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint import read_summary

SHARES = (0.9, 0.8, 0.7, 0.6)  # of the dense MACs, where they are compared
SHORT = {
    "dense": "no gates: the dense model, trained on for as long",
    "context": "gate sees the patch, CLS and the mean patch",
    "full": "the same, each step's images computed in full as well",
    "cls": "gate sees the patch and CLS",
    "normed": "gate sees the normalised patch alone",
    "mlp": "gate sees the raw patch alone (the published gate)",
    "kept_only": "as CLS and mean, kept patches attend to kept ones alone",
    "skip_mlp": "as CLS and mean, the MLP alone is skipped (as in DyT)",
    "every_second": "as CLS and mean, gates in every second layer",
    "bypass": "as CLS and mean, idle patches get an update of rank 8 (as in DyT)",
    "warm": "as CLS and mean, gates start from cosine labels",
    "slimming": "as CLS and mean, gates start from what matters to the head (as Patch Slimming)",
    "diversity": "as CLS and mean, with a loss on alike patches (2104.12753)",
    "attention_scale": "as CLS and mean, with AttnScale (2203.05962)",
    "feature_scale": "as CLS and mean, with FeatScale (2203.05962)",
    "merged": "no gate: up to five patches a layer merge (ToMe), one checkpoint for all",
    "repeated": "no gate: up to six layers attend as the one before (as SkipAt), one checkpoint for all",
    "cls_attention": "no gate: keeps what CLS attends to most (as EViT, IdleViT)",
    "random": "no gate: keeps random patches",
}

Row = dict[str, Any]


def short_runs(folder: Path, names: Iterable[str] = SHORT) -> Row:
    """The runs `folder`/NAME/train.json that are compared with each other; OSError if one is missing.

    Costs are shares of the MACs of the dense model at their own input size.
    """
    found = [short_run(read_summary(folder / name), {"name": name, "what": SHORT[name]}) for name in names]
    images, top1 = read_summary(folder / found[0]["name"])["heldout_images"], found[0]["points"][0]["top1"]
    return {
        "images": images,
        "size_px": found[0]["points"][0]["size_px"],
        "standard_error_points": round(100 * math.sqrt(top1 * (1 - top1) / images), 2),
        "shares": SHARES,
        "runs": found,
    }


def short_run(summary: Row, named: Row) -> Row:
    """A run's last validation, and its accuracy on the lines between those points at each of SHARES, None outside."""
    points = sorted(summary["history"][-1]["points"], key=lambda point: point["macs_ratio"])
    cost, top1 = ([point[key] for point in points] for key in ("macs_ratio", "top1"))
    at = [round(float(np.interp(share, cost, top1)), 4) if cost[0] <= share <= cost[-1] else None for share in SHARES]
    rounded = [{key: round(value, 4) for key, value in point.items()} for point in points[::-1]]
    return named | {"training": training_of(summary), "top1_at_shares": at, "points": rounded}


def training_of(summary: Row) -> Row:
    """How a run was trained, in brief."""
    named = {"start": summary["init"], "teacher": summary.get("teacher"), "epochs": summary["config"]["epochs"]}
    return named | {name: summary[name] for name in ("training_images", "wall_s", "device")}
