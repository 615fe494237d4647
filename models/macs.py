"""PURE: multiply-accumulates (MACs) of a pruned ViT in closed form, everything counted. 1 MAC = 2 FLOPs.

Counted: patch embedding, gates, every projection, both attention products, MLPs, head, and K/V of idle patches.
Not counted, as everywhere in the field: norms, activations, softmax, biases, residual sums, gather and scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import Attention
from models.pruned_vit import PrunedViT


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one layer for `k` kept patches of an image: `constant + per_kept * k + per_kept_squared * k**2`."""

    constant: int
    per_kept: int
    per_kept_squared: int

    def at(self, kept: int) -> int:
        """MACs with `kept` patches computed."""
        return self.constant + self.per_kept * kept + self.per_kept_squared * kept**2


@dataclass(frozen=True)
class Shape:
    """The dimensions that costs depend on."""

    layers: int
    width: int
    mlp_hidden: int
    prefix: int  # prefix tokens, always computed
    patches: int
    patch_values: int  # channels * height * width of one patch
    classes: int
    gate_hidden: int
    gated_layers: tuple[int, ...]
    attention: Attention

    @property
    def fixed(self) -> int:
        """MACs outside the layers: patch embedding and head (which reads one token)."""
        return self.patches * self.patch_values * self.width + self.width * self.classes

    @property
    def dense(self) -> int:
        """MACs of the plain model: no gates, every token computed."""
        tokens = self.prefix + self.patches
        layer = tokens * self._token_macs() + 2 * tokens * tokens * self.width
        return self.fixed + self.layers * layer

    def layer(self, index: int) -> LayerMacs:
        """One layer's cost as a polynomial in its kept patches."""
        C, tokens, prefix = self.width, self.prefix + self.patches, self.prefix
        gate = self.patches * (C + 1) * self.gate_hidden if index in self.gated_layers else 0
        if self.attention == "kept_only":
            # (prefix + k) tokens through everything, and (prefix + k)^2 in each of two attention products
            token, pair = self._token_macs(), 2 * C
            return LayerMacs(gate + prefix * token + prefix**2 * pair, token + 2 * prefix * pair, pair)
        keys_values = tokens * 2 * C * C
        query = self._token_macs() - 2 * C * C + 2 * tokens * C  # Q, proj, MLP, and a row of both products
        return LayerMacs(gate + keys_values + prefix * query, query, 0)

    def _token_macs(self) -> int:
        return 4 * self.width**2 + 2 * self.width * self.mlp_hidden  # QKV and proj, MLP


def shape_of(model: PrunedViT) -> Shape:
    """The shape of a PrunedViT."""
    vit, config = model.vit, model.config
    block = vit.blocks[0]
    return Shape(
        layers=len(vit.blocks),
        width=vit.embed_dim,
        mlp_hidden=block.mlp.fc1.out_features,
        prefix=vit.num_prefix_tokens,
        patches=vit.patch_embed.num_patches,
        patch_values=vit.patch_embed.proj.weight[0].numel(),
        classes=len(config.labels),
        gate_hidden=config.gate_hidden,
        gated_layers=config.gated_layers,
        attention=config.attention,
    )


def used_macs(shape: Shape, kept: Tensor) -> Tensor:
    """MACs each image used: kept (B, L, P) bool -> (B,) int64."""
    counts = kept.sum(-1)  # (B, L)
    total = torch.full_like(counts[:, 0], shape.fixed)
    for i in range(shape.layers):
        layer = shape.layer(i)
        total = total + layer.constant + layer.per_kept * counts[:, i] + layer.per_kept_squared * counts[:, i] ** 2
    return total
