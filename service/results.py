"""From the engine's row to the caller's result: probabilities, skipped patches, MACs. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service import schemas
from service.artifact import Manifest
from service.budget import Choice
from service.macs import used_macs
from service.planner import Plan


class Receipt(NamedTuple):
    """What one image cost."""

    patches: int
    skipped_per_layer: tuple[int, ...]  # every layer
    skipped_mean: float  # over gated layers
    macs_used: int
    macs_ratio: float  # of the dense MACs at the full size


def make_receipt(manifest: Manifest, choice: Choice, kept: NDArray[np.bool_]) -> Receipt:
    """The receipt for one image that ran at `choice` from its kept patches (L, P)."""
    layers, patches = kept.shape
    graph, full = manifest.graph(choice.size_px), manifest.full
    if not choice.threshold:  # nothing was to be decided, so nothing is counted: most requests are such
        return Receipt(patches, (0,) * layers, 0.0, graph.dense_macs, graph.dense_macs / full.dense_macs)
    kept_counts = kept.sum(axis=1, dtype=np.int64)  # (L,)
    skipped = tuple((patches - kept_counts).tolist())
    used = int(used_macs(graph, kept_counts, gated=True))
    return Receipt(
        patches=patches,
        skipped_per_layer=skipped,
        skipped_mean=sum(skipped[layer] for layer in manifest.gated_layers) / len(manifest.gated_layers),
        macs_used=used,
        macs_ratio=used / full.dense_macs,
    )


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities along the last axis; shifted by the maximum, so that no finite logits overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def top_predictions(logits: NDArray[np.float32], labels: tuple[str, ...], top_k: int) -> list[schemas.Prediction]:
    """The `top_k` most probable labels of `logits` (classes,), or all if there are fewer; of equal ones the first."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return [{"index": i, "label": labels[i], "probability": float(probabilities[i])} for i in order]


def make_result(
    manifest: Manifest,
    plan: Plan,
    receipt: Receipt,
    logits: NDArray[np.float32],
    *,
    top_k: int,
    mask: NDArray[np.bool_] | None = None,
    overlay: str | None = None,
    cached: bool = False,
    first_look: schemas.FirstLook | None = None,
) -> schemas.Result:
    """The result for one image; `mask` (L, P) and `overlay` only if asked for, `first_look` if there was a second."""
    result: schemas.Result = {
        "predictions": top_predictions(logits, manifest.labels, top_k),
        "threshold": plan.choice.threshold,
        "size_px": plan.choice.size_px,
        "degraded": plan.degraded,
        "skipped_patches": {
            "mean": receipt.skipped_mean,
            "per_layer": receipt.skipped_per_layer,
            "patches": receipt.patches,
        },
        "macs": {"used": receipt.macs_used, "dense": manifest.full.dense_macs, "ratio": receipt.macs_ratio},
    }
    if mask is not None:
        result["mask"] = mask.astype(np.uint8).tolist()
    if first_look is not None:
        result["first_look"] = first_look
    if cached:
        result["cached"] = True
    if overlay is not None:
        result["overlay"] = overlay
    return result
