"""What a pruned ViT is and how it is trained, as frozen values. It knows no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Attention = Literal["full_context", "kept_only"]
Skips = Literal["layer", "mlp"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Range = tuple[float, float]  # both ends are in it
ABOVE_0: Range = (math.ulp(0.0), math.inf)
FROM_1: Range = (1, math.inf)
SHARE: Range = (0, 1)


@dataclass(frozen=True)
class PrunedViTConfig:
    """Everything needed to build the model anew before its weights are loaded."""

    architecture: str  # a timm model name of the VisionTransformer family
    image_size_px: int  # side of the square input; the position embedding is for this size
    labels: tuple[str, ...]  # class names, in the order of the logits
    attention: Attention = "full_context"  # what kept patches attend to: all patches, or kept ones only
    gated_layers: tuple[int, ...] = ()  # layers with a gate, from 0; none: the plain dense model
    gate: str = "mlp"  # what scores a patch: a name of `models.gates.GATES`
    gate_hidden: int = 64  # hidden width of a gate's MLP
    skips: Skips = "layer"  # what an idle patch bypasses: the whole layer, or its MLP alone
    full_layers: int = 0  # in so many first layers kept patches attend to all, whatever `attention` says
    mlp_layers: int = 0  # in so many first layers an idle patch bypasses the MLP alone, whatever `skips` says
    bypass_rank: int = 0  # of the update that an idle patch gets in a layer's place; 0: it passes unchanged
    exits: tuple[int, ...] = ()  # layers, from 0, after which a head of their own may answer: see `models.exits`
    scaled: tuple[str, ...] = ()  # names of `models.regularise.SCALINGS`; a scaled model has no sparse path
    mean: tuple[float, ...] = IMAGENET_MEAN  # per RGB channel, of values in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """ValueError where a number is out of range, or idle patches would attend and nobody to them."""
        check_ranges(vars(self), {"image_size_px": FROM_1, "gate_hidden": FROM_1, "std": ABOVE_0})
        if self.attention == "kept_only" and (self.skips == "mlp" or self.mlp_layers > self.full_layers):
            raise ValueError("where idle patches bypass the MLP alone all attend: attention is full_context")

    def in_layer(self, layer: int) -> PrunedViTConfig:
        """The same with that layer's own `attention` and `skips`; layers from 0."""
        if not (self.full_layers or self.mlp_layers):
            return self
        attention: Attention = "full_context" if layer < self.full_layers else self.attention
        return replace(self, attention=attention, skips="mlp" if layer < self.mlp_layers else self.skips)

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

    # dense: the plain ViT; gates: gates alone on cosine labels; joint: both; exits: heads of early exits alone
    stage: Literal["dense", "gates", "joint", "exits"]
    epochs: int = 1  # passes over the training images
    batch_size: int = 64  # images a step
    learning_rate: float = 5e-4  # peak, after warm-up; of the head (dense, joint) or of the gates (gates)
    gate_learning_rate: float = 1e-3  # joint: peak of the gates
    layer_decay: float = 0.75  # dense, joint: each layer below the head learns this much slower than the one above
    weight_decay: float = 0.05  # AdamW's
    warmup_ratio: float = 0.05  # share of all steps spent rising to the peak
    label_smoothing: float = 0.1  # dense, joint: of the class labels
    distillation: float = 0.5  # dense, joint, with --teacher: weight of its answers, against the labels' 1 - this
    drop_path: float = 0.05  # dense, joint: stochastic depth of the last layer
    sizes_px: tuple[int, ...] = ()  # dense, joint: input sizes, one drawn a step; empty: the model's own alone
    judged_px: tuple[int, ...] = ()  # dense, joint: more input sizes that it is judged at, untrained
    merged: int = 0  # dense: a rival, patches merged a layer (ToMe, 2210.09461); each step draws up to so many
    repeated: int = 0  # dense: a rival, layers without attention (SkipAt, 2301.02240); each step draws up to so many
    diversity: float = 0.0  # joint: weight of the loss against alike patches before the last layer
    threshold_max: float = 0.75  # joint: thresholds are drawn from 0 to this
    dense_share: float = 0.25  # joint: share of each batch at threshold 0
    full_share: float = 0.0  # joint: weight of a second, full pass of each step's images; 0: none
    budget_weight: float = 4.0  # joint: of (share skipped - threshold) squared
    gate_noise: float = 1.0  # joint: scale of the logistic noise on gate logits at the start; 0 from half-way on
    ramp_ratio: float = 0.2  # joint: share of all steps in which thresholds rise to their full range
    shift_px: int = 3  # random shift of the source image, in its own pixels
    crop_min: float = 1.0  # smallest area share of a random crop; 1: no crop
    colour: float = 0.0  # strength of random brightness, contrast and saturation
    mixup: float = 0.0  # alpha of mixup; 0: none
    cutmix: float = 0.0  # alpha of CutMix; 0: none
    cosine_threshold: float = 0.8  # gates: a patch more similar than this to its next layer is labelled skip
    impact_skip: float = 0.0  # gates: share labelled skip by top-down impact (2106.02852); 0: by cosine_threshold
    holdout_ratio: float = 0.05  # share of the training images kept out, for validation and calibration
    validate_every: int = 1  # epochs between looks at the images kept out; the last epoch always ends with one
    max_images: int = 0  # training images used, 0 for all
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError names a number that is out of range."""
        counts = ("epochs", "batch_size", "validate_every", "sizes_px", "judged_px")
        shares = ["warmup_ratio", "label_smoothing", "distillation", "drop_path", "threshold_max", "dense_share"]
        shares += ("full_share", "ramp_ratio", "crop_min", "cosine_threshold", "impact_skip", "holdout_ratio")
        ranges = dict.fromkeys(counts, FROM_1) | dict.fromkeys(shares, SHARE) | {"learning_rate": ABOVE_0}
        check_ranges(vars(self), ranges)


def check_ranges(settings: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """ValueError names the first number, alone or in a tuple, outside its range; where none is given, below 0."""
    for name, value in settings.items():
        least, most = ranges.get(name, (0, math.inf))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not (least <= number <= most and math.isfinite(number)):
                lowest = "above 0" if (least, most) == ABOVE_0 else f"{least} or more"
                wanted = lowest if most == math.inf else f"from {least} to {most}"
                raise ValueError(f"{name.replace('_', '-')} {number}: has to be {wanted}")
