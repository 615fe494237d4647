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
    "dense": "no gates: the dense model, trained on for as long; for less, at a smaller size untrained",
    "context": "gate sees the patch, CLS and the mean patch",
    "full": "the same, each step's images computed in full as well",
    "cls": "gate sees the patch and CLS",
    "context_mean": "gate sees the patch and the mean patch",
    "normed": "gate sees the normalised patch alone",
    "mlp": "gate sees the raw patch alone (the published gate)",
    "kept_only": "as CLS and mean, kept patches attend to kept ones alone",
    "kept_late": "as CLS and mean, kept patches attend to kept ones alone in the later half of the layers",
    "skip_mlp": "as CLS and mean, the MLP alone is skipped (as in DyT)",
    "mlp_early": "as CLS and mean, the MLP alone is skipped in the earlier half of the layers, all in the later",
    "every_second": "as CLS and mean, gates in every second layer",
    "bypass": "as CLS and mean, idle patches get an update of rank 8 (as in DyT)",
    "warm": "as CLS and mean, gates start from cosine labels",
    "slimming": "as CLS and mean, gates start from what matters to the head (as Patch Slimming)",
    "diversity": "as CLS and mean, with a loss on alike patches (2104.12753)",
    "attention_scale": "as CLS and mean, with AttnScale (2203.05962)",
    "feature_scale": "as CLS and mean, with FeatScale (2203.05962)",
    "merged": "no gate: up to five patches a layer merge (ToMe), one checkpoint for all",
    "repeated": "no gate: up to six layers attend as the one before (as SkipAt), one checkpoint for all",
    "many_sizes": "no gates: trained at two input sizes by turns, run at both",
    "exits": "no gate: an image leaves after 6, 8 or 10 layers if sure (early exit; heads on the dense run)",
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
        "seed": found[0]["training"]["seed"],
        "size_px": found[0]["points"][0]["size_px"],
        "standard_error_points": round(100 * math.sqrt(top1 * (1 - top1) / images), 2),
        "shares": SHARES,
        "runs": found,
    }


def short_run(summary: Row, named: Row) -> Row:
    """A run's last validation, its accuracy on the lines between those points at each of SHARES, None outside; and how
    it came to that, epoch by epoch.
    """
    points = sorted(summary["history"][-1]["points"], key=lambda point: float(point["macs_ratio"]))
    cost, top1 = ([point[key] for point in points] for key in ("macs_ratio", "top1"))
    at = [round(float(np.interp(share, cost, top1)), 4) if cost[0] <= share <= cost[-1] else None for share in SHARES]
    history = [{"loss": round(epoch["loss"], 4), "points": _points(epoch)} for epoch in summary["history"]]
    return named | {
        "training": training_of(summary),
        "top1_at_shares": at,
        "points": history[-1]["points"],
        "history": history,  # an epoch without a validation has no points
    }


def training_of(summary: Row) -> Row:
    """How a run was trained, in brief."""
    named = {"start": summary["init"], "teacher": summary.get("teacher")}
    named |= {name: summary["config"][name] for name in ("epochs", "seed", "learning_rate")}
    return named | {name: summary[name] for name in ("training_images", "wall_s", "device")}


def _points(epoch: Row) -> list[Row]:
    """What an epoch's validation found, rounded: the model in full, which is judged first, then the dearest first."""
    points = [{key: round(value, 4) for key, value in point.items()} for point in epoch.get("points", [])]
    return points[:1] + sorted(points[1:], key=lambda point: -float(point["macs_ratio"]))
