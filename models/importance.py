"""A criterion from the literature: what a patch's change in a layer is worth at the end, seen from the top down.

Patch Slimming (2106.02852) prunes from the last layer to the first what the head's features don't depend on. Here each
layer's change of a patch counts by the attention that leads from it to what the head reads. It knows no gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor


def attention_weights(attn: Attention, normed: Tensor) -> Tensor:
    """Who attends to whom, mean over heads: normed tokens (B, N, C) -> (B, N, N), rows sum to 1."""
    query, key, _ = attn.qkv(normed).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    weights: Tensor = (attn.q_norm(query) * attn.scale @ attn.k_norm(key).mT).softmax(-1).mean(1)
    return weights


def impacts(blocks: Sequence[Block], hidden: Sequence[Tensor], prefix: int) -> Tensor:
    """How much each layer's change of each patch reaches the first token after the last layer.

    A change's size, relative to the patch's, times the share of the first token's last state that comes from there:
    half of a token's state is its own, half what it attends to (attention rollout, 2005.00928).

    Args:
        blocks: L layers.
        hidden: L + 1 dense states (B, N, C) float32: each layer's input, then the last output.
        prefix: how many tokens are no patches; at least 1.

    Returns:
        (L, B, P) float, at least 0; 0 in the last layer.
    """
    reach = torch.zeros_like(hidden[-1][:, None, :, 0])  # (B, 1, N)
    reach[:, :, 0] = 1
    found = []
    for block, before, after in zip(reversed(blocks), reversed(hidden[:-1]), reversed(hidden[1:]), strict=True):
        change = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-6)  # (B, N)
        found.append((reach[:, 0] * change)[:, prefix:])
        normed = block.norm1(before.to(block.norm1.weight.dtype))  # which may be half, where training computes in that
        reach = (reach + reach @ attention_weights(block.attn, normed).to(reach.dtype)) / 2
    return torch.stack(found[::-1])


def keep_most(impact: Tensor, skipped: float) -> Tensor:
    """Keep labels of `impact` (...), bool of its shape: all but the share `skipped`, in [0, 1), of the least impact."""
    least = int(skipped * impact.numel())
    keep = torch.ones(impact.numel(), dtype=torch.bool, device=impact.device)
    keep[impact.flatten().argsort()[:least]] = False
    return keep.view_as(impact)
