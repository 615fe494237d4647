"""The exported module: the contract's inputs and outputs around a pruned ViT. Traceable; it knows no file format."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.merging import merged_forward
from models.preprocessing import normalise
from models.pruned_vit import Execution, PrunedViT

INPUTS = ("images", "threshold")
OUTPUTS = ("logits", "kept")


class ServedViT(nn.Module):
    """uint8 images (B, H, W, 3) and thresholds (B,) -> logits (B, classes) float32, kept (B, L, P) bool."""

    def __init__(self, model: PrunedViT, execution: Execution) -> None:
        super().__init__()
        self.model = model
        self.execution: Execution = execution

    def forward(self, images: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        out = self.model(normalise(images, config.mean, config.std), threshold, self.execution)
        return out.logits, out.kept


class DenseViT(nn.Module):
    """The same weights without gates, and without what nothing reads in the last layer: the rival in benchmarks."""

    def __init__(self, model: PrunedViT) -> None:
        super().__init__()
        self.model = PrunedViT(model.vit, replace(model.config, gated_layers=()))

    def forward(self, images: Tensor) -> Tensor:
        config = self.model.config
        x = normalise(images, config.mean, config.std)
        return self.model(x, torch.zeros_like(x[:, 0, 0, 0])).logits  # not `len(x)`, which a trace takes for a constant


class MergedViT(nn.Module):
    """The same weights with `merged` patches merged away after every layer but the last: a rival in benchmarks."""

    def __init__(self, model: PrunedViT, merged: int) -> None:
        super().__init__()
        self.model = model
        self.merged = merged

    def forward(self, images: Tensor) -> Tensor:
        config = self.model.config
        return merged_forward(self.model, normalise(images, config.mean, config.std), self.merged)


def example_inputs(model: PrunedViT, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Seeded inputs to trace with: random pixels and thresholds that keep a ragged number of patches."""
    size_px = model.config.image_size_px
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size_px, size_px, 3), generator=generator, dtype=torch.uint8)
    return images, torch.linspace(0.3, 0.7, batch)
