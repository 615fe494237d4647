"""Parity: does what is served say what the trained model says? Torch's masked path against the served engine.

Compared on real images over batch sizes and thresholds, mixed thresholds included. Each reference row is computed once
and its image comes in every batch size: rows that depended on their neighbours would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.data import LabelledImages
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT
from service.engine import EngineOutput
from service.torchscript_engine import load_module

BATCH_SIZES = (1, 2, 7, 16)
THRESHOLDS = (0.0, 0.25, 0.5, 0.75, 1.0)
LOGIT_TOLERANCE = 1e-3  # rows whose masks agree; rounding alone gives about 1e-5
MASK_TOLERANCE = 0.999  # share of rows whose masks are identical, or that are ties
TIE = 1e-4  # a gate's logit so near to the threshold's may round to either side; rounding alone gives about 1e-5
TIES_TOLERATED = 0.02  # share of rows: more of them are no accident

Infer = Callable[[NDArray[np.uint8], NDArray[np.float32]], EngineOutput]


@dataclass(frozen=True)
class Parity:
    """The comparison's figures; differences are between logits."""

    rows: int  # compared rows: images x thresholds x batch sizes
    max_difference: float  # over rows whose masks are identical
    mean_difference: float
    top1_agreement: float  # share of rows
    identical_masks: float  # share of rows
    kept_agreement: float  # share of single decisions
    ties: float = 0.0  # share of rows whose masks differ, first in decisions that are ties alone

    @property
    def holds(self) -> bool:
        """Within the tolerances above."""
        same = self.identical_masks + self.ties
        return self.max_difference <= LOGIT_TOLERANCE and same >= MASK_TOLERANCE and self.ties <= TIES_TOLERATED

    def as_json(self) -> dict[str, float | int | bool]:
        """The figures and the verdict."""
        return {k: v if isinstance(v, int) else float(f"{v:.3g}") for k, v in asdict(self).items()} | {
            "holds": self.holds
        }


def compare(model: PrunedViT, infer: Infer, images: NDArray[np.uint8]) -> Parity:
    """Compare `infer` with the torch reference on images (n, H, W, 3) of one size."""
    rows = list(_thresholds(len(images)))
    reference = [_reference(model, images, threshold) for threshold in rows]
    differences, same_top1, same_mask, same_kept, ties = [], [], [], [], []
    for threshold, (expected, close) in zip(rows, reference, strict=True):
        for batch_size in BATCH_SIZES:
            actual = _in_batches(infer, images, threshold, batch_size)
            identical = (actual.kept == expected.kept).all(axis=(1, 2))
            difference = np.abs(actual.logits - expected.logits)
            differences.append(difference[identical])
            same_top1.append(actual.logits.argmax(1) == expected.logits.argmax(1))
            same_mask.append(identical)
            same_kept.append((actual.kept == expected.kept).mean())
            ties.append(begins_with_a_tie(actual.kept != expected.kept, close))
    every = np.concatenate(differences)
    return Parity(
        rows=sum(map(len, same_mask)),
        max_difference=float(every.max(initial=0.0)),
        mean_difference=float(every.mean()) if every.size else 0.0,
        top1_agreement=float(np.concatenate(same_top1).mean()),
        identical_masks=float(np.concatenate(same_mask).mean()),
        kept_agreement=float(np.mean(same_kept)),
        ties=float(np.concatenate(ties).mean()),
    )


def begins_with_a_tie(differs: NDArray[np.bool_], close: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows that differ first in decisions that are close alone; later layers then see something else.

    Args:
        differs: (n, L, P) decisions unlike the reference's.
        close: (n, L, P) the reference's decisions within rounding of their threshold.

    Returns:
        (n,) bool; False where nothing differs.
    """
    layers = np.asarray(differs.any(axis=2))  # (n, L)
    first, rows = layers.argmax(1), np.arange(len(layers))
    alone = np.asarray((~differs[rows, first] | close[rows, first]).all(axis=1))
    return np.asarray(layers.any(axis=1)) & alone


def image_array(images: LabelledImages, size_px: int) -> NDArray[np.uint8]:
    """All images as one array (n, size_px, size_px, 3)."""
    resized = LabelledImages(images.rows, images.image_column, images.label_column, images.labels, size_px)
    return np.stack([resized[i][0].numpy() for i in range(len(resized))])


def onnx_infer(file: Path) -> Infer:
    """A graph that isn't served (the masked reference), run as it is."""
    import onnxruntime as ort

    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images, threshold: EngineOutput(*session.run(None, {"images": images, "threshold": threshold}))


def torchscript_infer(file: Path) -> Infer:
    """A TorchScript file, as a user would load it."""
    module = load_module(file)

    @torch.inference_mode()
    def infer(images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        logits, kept = module(torch.from_numpy(images), torch.from_numpy(threshold))
        return EngineOutput(logits.numpy(), kept.numpy())

    return infer


def _thresholds(images: int) -> Iterator[NDArray[np.float32]]:
    for threshold in THRESHOLDS:
        yield np.full(images, threshold, np.float32)
    yield np.resize(np.array(THRESHOLDS, np.float32), images)  # all of them in one batch


@torch.inference_mode()
def _reference(
    model: PrunedViT, images: NDArray[np.uint8], threshold: NDArray[np.float32]
) -> tuple[EngineOutput, NDArray[np.bool_]]:
    """What the trained model says, and which decisions were close (n, L, P)."""
    limit = torch.from_numpy(threshold)
    out = model(normalise(torch.from_numpy(images), model.config.mean, model.config.std), limit)
    close = (out.scores.logit() - limit.logit()[:, None, None]).abs() < TIE  # never without a gate, or at 0 or 1
    return EngineOutput(out.logits.numpy(), out.kept.numpy()), close.numpy()


def _in_batches(
    infer: Infer, images: NDArray[np.uint8], threshold: NDArray[np.float32], batch_size: int
) -> EngineOutput:
    starts = range(0, len(images), batch_size)
    parts = [infer(images[i : i + batch_size], threshold[i : i + batch_size]) for i in starts]
    return EngineOutput(np.concatenate([p.logits for p in parts]), np.concatenate([p.kept for p in parts]))
