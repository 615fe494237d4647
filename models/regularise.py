"""Rivals from the literature on over-smoothing: patches that grow alike with depth, which is what makes them skippable.

A loss on how alike patches are (2104.12753), and two sets of learned factors for a timm ViT's attention (2203.05962)
that start as no change at all. A scaled ViT is for training and dense or masked execution: what runs a layer's parts
apart (`sparse_block` of layers, `merged_forward`) knows no factors; `check_supported` refuses such a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from models.backbone import reads_prefix_only

FACTORS = ("high_pass", "mean_scale", "rest_scale")  # the parameters that scaling adds to a layer's attention


def diversity_loss(patches: Tensor) -> Tensor:
    """How alike the patches of an image are: the mean absolute cosine similarity of all pairs (2104.12753).

    Args:
        patches: (B, P, C) float, one layer's, without prefix tokens; P at least 2. float32 inside, also in autocast.

    Returns:
        A scalar in [0, 1]: 0 where all are at right angles, 1 where all are parallel.
    """
    P = patches.shape[1]
    with torch.autocast(patches.device.type, enabled=False):
        direction = F.normalize(patches.float(), dim=-1)
        alike = (direction @ direction.mT).abs()  # (B, P, P)
    own = alike.diagonal(dim1=1, dim2=2).sum(-1)
    return ((alike.sum((1, 2)) - own) / (P * (P - 1))).mean()


def scale_attention(vit: VisionTransformer) -> None:
    """AttnScale (2203.05962), in place: a factor `high_pass` (h,) for each layer's attention map, all 0.

    A last layer that computes only prefix tokens is left as it is. Factors that are there already stay.
    """
    for attn in _scalable(vit):
        if attn.high_pass is None:
            attn.high_pass = nn.Parameter(attn.proj.weight.new_zeros(attn.num_heads))


def scale_features(vit: VisionTransformer) -> None:
    """FeatScale (2203.05962), in place: factors `mean_scale`, `rest_scale` (C,) for each layer's attention.

    A last layer that computes only prefix tokens is left as it is. Factors that are there already stay.
    """
    for attn in _scalable(vit):
        if attn.mean_scale is None:
            attn.mean_scale = nn.Parameter(attn.proj.weight.new_zeros(attn.proj.out_features))
            attn.rest_scale = nn.Parameter(attn.proj.weight.new_zeros(attn.proj.out_features))


class ScaledAttention(Attention):  # type: ignore[misc]
    """timm's attention with the factors it was given; it has their names and keeps those of its other parameters.

    Made from an existing one by `scale_attention` and `scale_features`, never built.
    """

    high_pass: nn.Parameter | None  # (h,)
    mean_scale: nn.Parameter | None  # (C,)
    rest_scale: nn.Parameter | None  # (C,)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); `attn_mask` (B, 1, 1, N) bool is False for keys that nothing may see."""
        if is_causal:
            raise ValueError("scaled attention has no causal form")
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            self.q_norm(query), self.k_norm(key), value, attn_mask=attn_mask, dropout_p=dropout
        )
        if self.high_pass is not None:
            mixed = scaled_high_pass(mixed, value, self.high_pass, attn_mask)
        out = self.proj_drop(self.proj(self.norm(mixed.transpose(1, 2).flatten(2))))
        if self.mean_scale is None or self.rest_scale is None:
            return out
        visible = None if attn_mask is None else attn_mask[:, 0]  # (B, 1, N)
        return scaled_features(out, self.mean_scale, self.rest_scale, visible)


def scaled_high_pass(mixed: Tensor, value: Tensor, factor: Tensor, visible: Tensor | None = None) -> Tensor:
    """(L + (1 + w) (A - L)) V from A V, where L is uniform attention: (1 + w) A V - w mean(V).

    Args:
        mixed: (B, h, Q, d), A V.
        value: (B, h, N, d), V.
        factor: (h,), w.
        visible: (B, 1, 1, N) bool, the keys that A is over; None for all.
    """
    w = factor[:, None, None]
    return (1 + w) * mixed - w * _mean_token(value, visible)


def scaled_features(x: Tensor, mean_scale: Tensor, rest_scale: Tensor, visible: Tensor | None = None) -> Tensor:
    """x + s * mean(x) + t * (x - mean(x)), the mean over tokens: x (B, N, C), s and t (C,), visible (B, 1, N) bool."""
    mean = _mean_token(x, visible)
    return x + mean_scale * mean + rest_scale * (x - mean)


def _mean_token(x: Tensor, visible: Tensor | None) -> Tensor:
    """Mean over visible tokens: x (..., N, C), visible (..., 1, N) bool or None -> (..., 1, C)."""
    if visible is None:
        return x.mean(-2, keepdim=True)
    weights = visible.mT.to(x.dtype)  # (..., N, 1)
    return (x * weights).sum(-2, keepdim=True) / weights.sum(-2, keepdim=True)


def _scalable(vit: VisionTransformer) -> list[ScaledAttention]:
    """Each layer's attention that factors can reach, turned into ScaledAttention where it isn't."""
    layers = len(vit.blocks) - (1 if reads_prefix_only(vit) else 0)
    found = [block.attn for block in vit.blocks[:layers]]
    for attn in found:
        if not isinstance(attn, ScaledAttention):
            attn.__class__ = ScaledAttention  # same parameters under the same names, whoever holds them
            for name in FACTORS:
                attn.register_parameter(name, None)
    return found


SCALINGS: dict[str, Callable[[VisionTransformer], None]] = {"attention": scale_attention, "features": scale_features}
