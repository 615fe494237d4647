"""The exported module: the contract's inputs and outputs around a pruned ViT. Traceable; it knows no file format."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call

from export.fused import attend, embeds_pixels, with_pixel_embed
from models.merging import merged_forward
from models.preprocessing import normalise
from models.pruned_vit import Execution, PrunedViT

INPUTS = ("images", "threshold")
OUTPUTS = ("logits", "kept")
_NOWHERE = 1 << 40  # no row of any table: a runtime refuses to gather it


class ServedViT(nn.Module):
    """uint8 images (B, H, W, 3) and thresholds (B,) -> logits (B, classes) float32, kept (B, L, P) bool."""

    def __init__(self, model: PrunedViT, execution: Execution, *, fused: bool = False) -> None:
        """`fused`: with what `export.fused` has; the sparse path alone."""
        super().__init__()
        self.model = with_pixel_embed(model) if fused else model
        self.execution: Execution = execution
        self.attend = attend if fused else None

    def forward(self, images: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(_inputs(self.model, images), threshold, self.execution, attend=self.attend)
        return out.logits, out.kept


class AnySizeViT(nn.Module):
    """`ServedViT`'s sparse path at several input sizes, one set of weights; each has its position embedding."""

    starts: Tensor  # (largest grid + 1,) int64: where each grid's rows begin in the table of position embeddings
    other_pos_embed: Tensor  # (1, rows, C): the table without the first size's, which has a parameter

    def __init__(self, models: Mapping[int, PrunedViT], *, fused: bool = False) -> None:
        """Build from one set of weights.

        Args:
            models: the same one at each size in px, at least two; first the one whose position embedding is trained.
            fused: with what `export.fused` has.
        """
        super().__init__()
        sizes = list(models)
        self.model = with_pixel_embed(models[sizes[0]]) if fused else deepcopy(models[sizes[0]])
        self.model.vit.patch_embed.img_size = None  # it would insist on its own
        self.attend = attend if fused else None
        self.patch_px = int(self.model.vit.patch_embed.patch_size[0])
        embeddings = [models[size_px].vit.pos_embed.detach() for size_px in sizes]  # (1, N, C) each, their own N
        self.grids = [size_px // self.patch_px for size_px in sizes]  # patches along a side
        starts = torch.full((max(self.grids) + 1,), _NOWHERE)
        for index, grid in enumerate(self.grids):
            starts[grid] = sum(each.shape[1] for each in embeddings[:index])
        self.register_buffer("starts", starts)
        self.register_buffer("other_pos_embed", torch.cat(embeddings[1:], 1))

    def forward(self, images: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        vit, grid = self.model.vit, images.shape[1] // self.patch_px
        count = grid * grid + (0 if vit.no_embed_class else vit.num_prefix_tokens)
        every = torch.cat([vit.pos_embed, self.other_pos_embed], 1)
        chosen = every.index_select(1, self.starts[grid] + torch.arange(count))
        inputs = (_inputs(self.model, images), threshold, "sparse")
        out = functional_call(self.model, {"vit.pos_embed": chosen}, inputs, {"attend": self.attend})
        return out.logits, out.kept

    @property
    def side(self) -> Dim:
        """The images' side in px: any whole number of patches between the smallest and the largest size.

        Running a size between them that isn't one of the model's fails.
        """
        return self.patch_px * Dim("grid", min=min(self.grids), max=max(self.grids))


def without_gates(model: PrunedViT) -> PrunedViT:
    """The same weights, every patch computed in every layer: what threshold 0 means, with nothing to decide or pack."""
    return PrunedViT(model.vit, replace(model.config, gated_layers=()))


class DenseViT(nn.Module):
    """The model without gates, and without what nothing reads in the last layer: the rival in benchmarks.

    Its layers are built as those of the served graph are.
    """

    def __init__(self, model: PrunedViT, *, fused: bool = True) -> None:
        """`fused`: with what `export.fused` has."""
        super().__init__()
        self.model = without_gates(with_pixel_embed(model) if fused else model)
        self.attend = attend if fused else None

    def forward(self, images: Tensor) -> Tensor:
        x = _inputs(self.model, images)
        threshold = torch.zeros_like(x[:, 0, 0, 0], dtype=torch.float32)  # not by `len(x)`, which a trace fixes
        return self.model(x, threshold, "sparse", attend=self.attend).logits


class TimmViT(nn.Module):
    """timm's own forward, all of it: what exporting the model without further thought gives; a rival in benchmarks."""

    def __init__(self, model: PrunedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.vit(_inputs(self.model, images))


class MergedViT(nn.Module):
    """The same weights with `merged` patches merged away after every layer but the last: a rival in benchmarks."""

    def __init__(self, model: PrunedViT, merged: int) -> None:
        super().__init__()
        self.model = with_pixel_embed(model)
        self.merged = merged

    def forward(self, images: Tensor) -> Tensor:
        return merged_forward(self.model, _inputs(self.model, images), self.merged)


def _inputs(model: PrunedViT, images: Tensor) -> Tensor:
    """What a model's embedding takes: pixels as they are, or normalised."""
    return images if embeds_pixels(model) else normalise(images, model.config.mean, model.config.std)


def example_inputs(model: PrunedViT, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Seeded inputs to trace with: random pixels and thresholds that keep a ragged number of patches."""
    size_px = model.config.image_size_px
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, size_px, size_px, 3), generator=generator, dtype=torch.uint8)
    return images, torch.linspace(0.3, 0.7, batch)
