"""PURE: multiply-accumulates (MACs) of a pruned ViT in closed form, everything counted. 1 MAC = 2 FLOPs.

Counted: patch embedding, gates, bypasses, every projection, both attention products, MLPs, attention pooling, head, K/V
of idle patches.
Not counted, as everywhere in the field: norms, activations, softmax, biases, residual sums, gather and scatter. Nor is
what a graph computes for idle places and drops, because leaving it out takes longer: the attention products of their
queries, 2 * tokens * width each, and in `full_context` on a CPU the queries themselves, width**2 each; 3 and 8 % of a
kept token's cost in a ViT-S with 65 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.backbone import reads_prefix_only
from models.bypass import Bypass
from models.config import Attention, Skips
from models.gates import Gate
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
    mlp_hidden: int  # of a plain MLP that takes as many MACs; a gated one has three matrices
    prefix: int  # prefix tokens, always computed
    patches: int
    patch_values: int  # channels * height * width of one patch
    classes: int
    pooling: int  # MACs of attention pooling, where the head pools so
    gate: int  # MACs of one layer's gate, and of what idle patches get in the layer's place
    gated_layers: tuple[int, ...]
    attention: tuple[Attention, ...]  # of each layer
    skips: tuple[Skips, ...]  # of each layer
    last_reads_prefix: bool  # the head reads no patch, so a last layer without a gate computes none

    @property
    def fixed(self) -> int:
        """MACs outside the layers: patch embedding, pooling and head (which reads one token)."""
        return self.patches * self.patch_values * self.width + self.pooling + self.width * self.classes

    @property
    def dense(self) -> int:
        """MACs of the plain model: no gates, every token computed but those of the last layer that nothing reads."""
        return self.timm_forward - (self._unread_macs() if self.last_reads_prefix else 0)

    @property
    def timm_forward(self) -> int:
        """MACs of timm's own forward, which also computes what nothing reads in the last layer."""
        tokens = self.prefix + self.patches
        layer = tokens * self._token_macs() + 2 * tokens * tokens * self.width
        return self.fixed + self.layers * layer

    def layer(self, index: int) -> LayerMacs:
        """One layer's cost as a polynomial in its kept patches."""
        C, tokens, prefix = self.width, self.prefix + self.patches, self.prefix
        gated = index in self.gated_layers
        gate = self.gate if gated else 0
        keys_values = tokens * 2 * C * C
        query = self._query_macs()
        if not gated and index == self.layers - 1 and self.last_reads_prefix:
            return LayerMacs(keys_values + prefix * query, 0, 0)
        if gated and self.skips[index] == "mlp":
            mlp = 2 * C * self.mlp_hidden
            return LayerMacs(gate + keys_values + tokens * (query - mlp) + prefix * mlp, mlp, 0)
        if gated and self.attention[index] == "kept_only":
            # (prefix + k) tokens through everything, and (prefix + k)^2 in each of two attention products
            token, pair = self._token_macs(), 2 * C
            return LayerMacs(gate + prefix * token + prefix**2 * pair, token + 2 * prefix * pair, pair)
        return LayerMacs(gate + keys_values + prefix * query, query, 0)

    def _query_macs(self) -> int:
        """What a token costs beyond its key and value: Q, proj, MLP, and a row of both attention products."""
        return self._token_macs() - 2 * self.width**2 + 2 * (self.prefix + self.patches) * self.width

    def _unread_macs(self) -> int:
        return self.patches * self._query_macs()

    def _token_macs(self) -> int:
        return 4 * self.width**2 + 2 * self.width * self.mlp_hidden  # QKV and proj, MLP


def shape_of(model: PrunedViT, patches: int | None = None) -> Shape:
    """The shape of a PrunedViT, at its own input size or at another one's number of patches."""
    vit, config = model.vit, model.config
    block, patches = vit.blocks[0], patches or int(vit.patch_embed.num_patches)
    own = [config.in_layer(layer) for layer in range(len(vit.blocks))]
    gates = [gate for gate in model.gates.values() if isinstance(gate, Gate)]
    bypasses = [bypass for bypass in model.bypasses.values() if isinstance(bypass, Bypass)]
    beside = sum(gate.macs(patches, vit.embed_dim) for gate in gates[:1])
    beside += sum(bypass.macs(vit.num_prefix_tokens + patches) for bypass in bypasses[:1])
    return Shape(
        layers=len(vit.blocks),
        width=vit.embed_dim,
        mlp_hidden=_linear_macs(block.mlp) // (2 * vit.embed_dim),
        prefix=vit.num_prefix_tokens,
        patches=patches,
        patch_values=vit.patch_embed.proj.weight[0].numel(),
        classes=len(config.labels),
        pooling=_pooling_macs(vit, patches),
        gate=beside,
        gated_layers=config.gated_layers,
        attention=tuple(layer.attention for layer in own),
        skips=tuple(layer.skips for layer in own),
        last_reads_prefix=reads_prefix_only(vit),
    )


def _linear_macs(module: nn.Module) -> int:
    """MACs of all projections in a module, for one token."""
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))


def _pooling_macs(vit: VisionTransformer, patches: int) -> int:
    """MACs of timm's attention pooling: its latents ask all tokens, or (without parameters) all tokens each other."""
    pool, tokens = vit.attn_pool, patches + vit.num_prefix_tokens * bool(vit.pool_include_prefix)
    if pool is None:
        return 0
    if isinstance(pool, AttentionPoolLatent):
        kv, latents = pool.kv.weight.numel(), pool.latent_len
        return tokens * kv + latents * (_linear_macs(pool) - kv + 2 * tokens * vit.embed_dim)
    return 2 * tokens * tokens * vit.embed_dim


def used_macs(shape: Shape, kept: Tensor, gated: bool) -> Tensor:
    """MACs each image used: kept (B, L, P) bool -> (B,) int64.

    `gated`: did gates run? They needn't at threshold 0, where there is nothing to decide: the dense model's MACs.
    """
    if not gated:
        return torch.full_like(kept[:, 0, 0], shape.dense, dtype=torch.int64)
    counts = kept.sum(-1)  # (B, L)
    total = torch.full_like(counts[:, 0], shape.fixed)
    for i in range(shape.layers):
        layer = shape.layer(i)
        total = total + layer.constant + layer.per_kept * counts[:, i] + layer.per_kept_squared * counts[:, i] ** 2
    return total
