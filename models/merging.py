"""A rival: token merging (ToMe, 2210.09461), from its formulas. Every layer but the last merges its most alike patches.

Patches are dealt to two sets in turn; each patch of the first finds the most alike of the second, and the `merged`
most alike pairs become one patch each, their mean weighted by how many patches each stands for. It knows no gates:
those of the model play no part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor

from models.backbone import UnsupportedModel, check_supported, reads_prefix_only
from models.macs import Shape
from models.pruned_vit import PrunedViT, feed_forward, scaled


class Matching(NamedTuple):
    """Which patches of a layer merge; indices of its P patches, r of them merged away."""

    source: Tensor  # (B, r) int64, merged away
    target: Tensor  # (B, r) int64, what each becomes a part of; several may share one
    stays: Tensor  # (B, P - r) int64, in order


def patches_left(patches: int, merged: int, layers: int) -> tuple[int, ...]:
    """Patches that enter each layer; the last merges none, another at most half of its own.

    Raises:
        ValueError: `merged` is negative.
    """
    if merged < 0:
        raise ValueError(f"merged is {merged}: a layer can't merge fewer than no patches")
    left = [patches]
    for _ in range(layers - 1):
        left.append(left[-1] - min(merged, left[-1] // 2))
    return tuple(left)


@torch.no_grad()
def match(keys: Tensor, merged: int) -> Matching:
    """Bipartite soft matching by cosine similarity (2210.09461).

    Args:
        keys: (B, P, d) float, what is compared; float32 inside.
        merged: r, at most P // 2.
    """
    B, P, _ = keys.shape
    with torch.autocast(keys.device.type, enabled=False):
        alike = F.normalize(keys.float(), dim=-1)
        score, nearest = (alike[:, 0::2] @ alike[:, 1::2].mT).max(-1)  # (B, ceil(P / 2))
    order = score.argsort(dim=-1, descending=True)
    chosen = order[:, :merged]
    second = torch.arange(1, P, 2, device=keys.device).expand(B, -1)
    stays = torch.cat([2 * order[:, merged:], second], 1).sort(1).values
    return Matching(2 * chosen, 2 * nearest.gather(1, chosen) + 1, stays)


def merge(patches: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Means weighted by size: patches (B, P, C), size (B, P) float32 -> (B, P - r, C), (B, P - r); float32 inside."""
    C = patches.shape[-1]

    def wide(index: Tensor) -> Tensor:
        return index[..., None].expand(-1, -1, C)

    total = patches.float() * size[..., None]
    total = total.scatter_add(1, wide(matching.target), total.gather(1, wide(matching.source)))
    size = size.scatter_add(1, matching.target, size.gather(1, matching.source)).gather(1, matching.stays)
    mean = total.gather(1, wide(matching.stays)) / size[..., None]
    return mean.to(patches.dtype), size


def merged_forward(model: PrunedViT, images: Tensor, merged: int) -> Tensor:
    """Classify with `merged` patches fewer after every layer but the last; differentiable, without any gate.

    Args:
        model: its gates play no part.
        images: (B, 3, H, W) float, normalised.
        merged: r of the paper; the more, the faster. A layer merges at most half of the patches it has.

    Returns:
        Logits (B, classes); those of the plain model where `merged` is 0.

    Raises:
        ValueError: `merged` is negative.
        UnsupportedModel: the head reads patches, whose mean merging would change, or attention has scales.
    """
    check_supported(model.vit, model.config.architecture)
    if not reads_prefix_only(model.vit):
        raise UnsupportedModel(f"{model.config.architecture}: merging needs a head that reads prefix tokens alone")
    prefix = model.vit.num_prefix_tokens
    x = model.embed(images)
    size = torch.ones_like(x[:, prefix:, 0], dtype=torch.float32)  # (B, P)
    left = patches_left(size.shape[1], merged, model.layers)
    bias = None  # all sizes are 1 until something merges
    for layer in range(model.layers - 1):
        x, size = _merging_block(model.vit.blocks[layer], x, size, bias, left[layer] - left[layer + 1])
        if merged:
            bias = F.pad(size.log(), (prefix, 0))[:, None, None]  # (B, 1, 1, N)
    return model.head(_prefix_block(model.vit.blocks[-1], x, bias, prefix))


def merged_macs(shape: Shape, merged: int, head_dim: int = 64) -> int:
    """MACs of `merged_forward` for one image, everything counted, the products that compare keys too.

    Args:
        shape: of the model; its gates aren't counted, for they don't run.
        merged: r of the paper.
        head_dim: d, the width of the keys that are compared: 64 in timm's ViTs from tiny to large.
    """
    C, prefix, mlp = shape.width, shape.prefix, 2 * shape.width * shape.mlp_hidden
    left = patches_left(shape.patches, merged, shape.layers)
    total = shape.fixed
    for before, after in zip(left[:-1], left[1:], strict=True):
        tokens = prefix + before
        total += tokens * 4 * C**2 + 2 * tokens**2 * C + (prefix + after) * mlp
        if after < before:
            total += (before - before // 2) * (before // 2) * head_dim
    tokens = prefix + left[-1]
    return total + tokens * 2 * C**2 + prefix * (2 * C**2 + 2 * tokens * C + mlp)


def _merging_block(block: Block, x: Tensor, size: Tensor, bias: Tensor | None, merged: int) -> tuple[Tensor, Tensor]:
    """One layer that merges between attention and MLP: x (B, N, C), size (B, P) -> (B, N - r, C), (B, P - r)."""
    attn, prefix = block.attn, x.shape[1] - size.shape[1]
    query, key, value = (_heads(attn, t) for t in attn.qkv(block.norm1(x)).chunk(3, -1))
    key = attn.k_norm(key)
    x = x + block.drop_path1(scaled(block.ls1, attn.proj, _attend(attn, attn.q_norm(query), key, value, bias)))
    if merged:
        matching = match(key[:, :, prefix:].mean(1), merged)
        patches, size = merge(x[:, prefix:], size, matching)
        x = torch.cat([x[:, :prefix], patches], 1)
    return x + block.drop_path2(feed_forward(block, block.norm2(x))), size


def _prefix_block(block: Block, x: Tensor, bias: Tensor | None, prefix: int) -> Tensor:
    """The last layer, for the prefix tokens alone: x (B, N, C) -> (B, prefix, C)."""
    attn, normed = block.attn, block.norm1(x)
    D, weight = attn.attn_dim, attn.qkv.weight
    row_bias = (None, None) if attn.qkv.bias is None else (attn.qkv.bias[:D], attn.qkv.bias[D:])
    query = _heads(attn, F.linear(normed[:, :prefix], weight[:D], row_bias[0]))
    key, value = (_heads(attn, t) for t in F.linear(normed, weight[D:], row_bias[1]).chunk(2, -1))
    mixed = _attend(attn, attn.q_norm(query), attn.k_norm(key), value, bias)
    x = x[:, :prefix] + block.drop_path1(scaled(block.ls1, attn.proj, mixed))
    return x + block.drop_path2(feed_forward(block, block.norm2(x)))


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(B, N, h * d) -> (B, h, N, d)."""
    return x.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2)


def _attend(attn: Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Proportional attention (2210.09461), unprojected: query (B, h, Q, d), bias log sizes -> (B, Q, C)."""
    bias = None if bias is None else bias.to(query.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    out: Tensor = attn.norm(mixed.transpose(1, 2).flatten(2))
    return out
