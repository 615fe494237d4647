"""What a pruned ViT is and how it is trained, as frozen values. It knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Attention = Literal["full_context", "kept_only"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PrunedViTConfig:
    """Everything needed to build the model anew before its weights are loaded."""

    architecture: str  # a timm model name of the VisionTransformer family
    image_size_px: int  # side of the square input; the position embedding is for this size
    labels: tuple[str, ...]  # class names, in the order of the logits
    attention: Attention = "full_context"  # what kept patches attend to: all patches, or kept ones only
    gated_layers: tuple[int, ...] = ()  # layers with a gate, from 0; none: the plain dense model
    gate_hidden: int = 64  # hidden width of a gate's MLP
    mean: tuple[float, ...] = IMAGENET_MEAN  # per RGB channel, of values in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD

    @staticmethod
    def from_json(raw: dict[str, Any]) -> PrunedViTConfig:
        """Build from a JSON object; ValueError names a field that is unknown or missing."""
        known = {field.name for field in fields(PrunedViTConfig)}
        if unknown := sorted(set(raw) - known):
            raise ValueError(f"unknown fields {unknown}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        try:
            return PrunedViTConfig(**values)
        except TypeError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    stage: Literal["dense", "gates"]  # dense: fine-tune the plain ViT; gates: the gates alone, on cosine labels
    epochs: int = 1  # passes over the training images
    batch_size: int = 64  # images a step
    learning_rate: float = 5e-4  # peak, after warm-up; of the head (dense) or of the gates (gates)
    layer_decay: float = 0.75  # dense: each layer below the head learns this much slower than the one above
    weight_decay: float = 0.05  # AdamW's
    warmup_ratio: float = 0.05  # share of all steps spent rising to the peak
    label_smoothing: float = 0.1  # dense: of the class labels
    drop_path: float = 0.05  # dense: stochastic depth of the last layer
    shift_px: int = 3  # random shift of the source image, in its own pixels
    cosine_threshold: float = 0.8  # gates: a patch more similar than this to its next layer is labelled skip
    holdout_ratio: float = 0.05  # share of the training images kept out, for validation and calibration
    max_images: int = 0  # training images used, 0 for all
    seed: int = 0
