"""Layers as ONNX Runtime computes them best: pixels embedded in one product, attention in one operator.

Each says what the layer it stands for says, up to rounding. They are for the graphs that the service runs; what other
runtimes may read, and float16, for GPUs, has ONNX's standard operators alone. It knows no file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from models.pruned_vit import PrunedViT, self_attention


class PixelEmbed(nn.Module):
    """A timm PatchEmbed that takes pixels: normalisation goes into the weights, and a convolution is one product.

    uint8 (B, S, S, 3) -> patches (B, P, C). Pixels stay bytes until the product, a quarter of the traffic. A runtime
    works out the weights once, when it loads them.
    """

    def __init__(self, embed: PatchEmbed, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.proj, self.norm, self.patch_size = embed.proj, embed.norm, embed.patch_size
        self.num_patches = embed.num_patches
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        B, S, _, channels = images.shape
        height, width = self.patch_size
        cut = images.reshape(B, S // height, height, S // width, width * channels).transpose(2, 3)
        rows = cut.reshape(-1, height * width * channels)  # (B * P, p * p * 3)
        scale = 1 / (255 * torch.tensor(self.std)[:, None, None])
        scaled = self.proj.weight * scale  # (C, 3, p, p), of pixels less the mean
        shift = (scaled * (255 * torch.tensor(self.mean)[:, None, None])).sum((1, 2, 3))
        bias = -shift if self.proj.bias is None else self.proj.bias - shift
        patches = F.linear(rows.to(scaled.dtype), scaled.permute(0, 2, 3, 1).flatten(1), bias)
        return self.norm(patches.reshape(B, -1, bias.shape[0]))


def embeds_pixels(model: PrunedViT) -> bool:
    """Whether the model takes pixels as they are."""
    return isinstance(model.vit.patch_embed, PixelEmbed)


def with_pixel_embed(model: PrunedViT) -> PrunedViT:
    """The same model, weights shared, that takes pixels; as it is where timm embeds patches in another way."""
    made, embed = _shallow(model), model.vit.patch_embed
    if type(embed) is PatchEmbed and embed.flatten and not embed.dynamic_img_pad:
        made.vit.patch_embed = PixelEmbed(embed, model.config.mean, model.config.std)
    else:
        made.vit.patch_embed = copy(embed)
    return made


def attend(attn: Attention, normed: Tensor) -> Tensor:
    """`models.pruned_vit.self_attention` of all tokens; one operator in a graph: normed (B, N, C) -> (B, N, C)."""
    qkv, plain = attn.qkv, not torch.onnx.is_in_onnx_export()
    normalised = any(type(norm) is not nn.Identity for norm in (attn.q_norm, attn.k_norm))
    if plain or normalised or qkv.bias is None or attn.attn_dim != normed.shape[-1]:
        return self_attention(attn, normed, normed.shape[1])
    return torch.onnx.ops.symbolic(
        "com.microsoft::Attention",
        (normed, qkv.weight.t(), qkv.bias),
        {"num_heads": attn.num_heads},
        dtype=normed.dtype,
        shape=normed.shape,
        version=1,
    )


def _shallow(model: PrunedViT) -> PrunedViT:
    """A model whose embedding can be replaced without touching the other's."""
    made = copy(model)
    made._modules = dict(model._modules)
    made.vit = copy(model.vit)
    made.vit._modules = dict(model.vit._modules)
    return made
