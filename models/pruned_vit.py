"""Any timm VisionTransformer with a gate in some of its layers.

Two execution paths with one meaning. `masked` computes every token and discards what was skipped: the reference, and
what training uses. `sparse` computes kept tokens only: what serving uses. It knows no thresholds' origin, no data.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.config import Attention, PrunedViTConfig
from models.gates import MLPGate
from models.selection import Packing, keep_patches, keep_tokens, pack

Execution = Literal["masked", "sparse"]


class UnsupportedModel(ValueError):
    """The named timm model isn't built from the plain blocks that can be pruned."""


class PrunedOutput(NamedTuple):
    """What one forward gave; layers without a gate score 1 and keep everything."""

    logits: Tensor  # (B, classes) float
    scores: Tensor  # (B, L, P) float in [0, 1]
    kept: Tensor  # (B, L, P) bool


class Trajectory(NamedTuple):
    """The dense model's hidden states: what the cosine labels are made from."""

    logits: Tensor  # (B, classes)
    hidden: tuple[Tensor, ...]  # L + 1 tensors (B, N, C): each layer's input, then the last output before the norm


class PrunedViT(nn.Module):
    """An unmodified timm ViT and a gate for each gated layer; prefix tokens are always kept."""

    def __init__(self, vit: VisionTransformer, config: PrunedViTConfig) -> None:
        super().__init__()
        check_supported(vit, config.architecture)
        if not set(config.gated_layers) <= set(range(len(vit.blocks))):
            raise ValueError(f"gated_layers {config.gated_layers}: the model has layers 0 to {len(vit.blocks) - 1}")
        self.config = config
        self.vit = vit
        self.gates = nn.ModuleDict({str(i): MLPGate(vit.embed_dim, config.gate_hidden) for i in config.gated_layers})

    @property
    def layers(self) -> int:
        """L, gated or not."""
        return len(self.vit.blocks)

    @property
    def patches(self) -> int:
        """P at the configured input size."""
        return int(self.vit.patch_embed.num_patches)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> tokens (B, N, C), before the first layer."""
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        return self.vit.norm_pre(self.vit.patch_drop(x))

    def head(self, x: Tensor) -> Tensor:
        """Tokens after the last layer (B, N, C) -> logits (B, classes)."""
        return self.vit.forward_head(self.vit.norm(x))

    def gate_logits(self, layer: int, x: Tensor) -> Tensor:
        """The gate's logits (B, P) for a gated layer's input tokens (B, N, C)."""
        return self.gates[str(layer)](x, self.vit.num_prefix_tokens)

    def forward(self, images: Tensor, threshold: Tensor, execution: Execution = "masked") -> PrunedOutput:
        """Classify with each image's own score threshold.

        Args:
            images: (B, 3, H, W) float, normalised.
            threshold: (B,) float in [0, 1].
            execution: `masked` or `sparse`; the outputs are the same up to rounding. `sparse` is for inference.
        """
        run = masked_block if execution == "masked" else sparse_block
        x = self.embed(images)
        everything = torch.ones_like(x[:, self.vit.num_prefix_tokens :, 0])  # (B, P)
        all_scores, all_kept = [], []
        for layer, block in enumerate(self.vit.blocks):
            if layer in self.config.gated_layers:
                scores = self.gate_logits(layer, x).sigmoid()
                kept = keep_patches(scores, threshold)
                x = run(block, x, keep_tokens(kept, self.vit.num_prefix_tokens), self.config.attention)
            else:
                scores, kept = everything, everything > 0
                x = block(x)
            all_scores.append(scores)
            all_kept.append(kept)
        return PrunedOutput(self.head(x), torch.stack(all_scores, 1), torch.stack(all_kept, 1))

    def trajectory(self, images: Tensor) -> Trajectory:
        """The dense model's forward with every hidden state; gates play no part."""
        hidden = [self.embed(images)]
        for block in self.vit.blocks:
            hidden.append(block(hidden[-1]))
        return Trajectory(self.head(hidden[-1]), tuple(hidden))


def masked_block(block: Block, x: Tensor, keep: Tensor, attention: Attention) -> Tensor:
    """One layer on all tokens, then the idle ones are put back: x (B, N, C), keep (B, N) bool -> (B, N, C)."""
    keys = keep[:, None, None, :] if attention == "kept_only" else None  # (B, 1, 1, N)
    return torch.where(keep[..., None], block(x, attn_mask=keys), x)


def sparse_block(block: Block, x: Tensor, keep: Tensor, attention: Attention) -> Tensor:
    """One layer on kept tokens only; evaluation mode. Idle tokens still give keys and values in `full_context`.

    x (B, N, C) float, keep (B, N) bool -> (B, N, C). One gather of kept tokens, one scatter of their new values.
    """
    B, N, C = x.shape
    rows = x.reshape(B * N, C)
    packing = pack(keep)
    kept_rows = rows.index_select(0, packing.rows)  # (M, C)
    mixed = _attend(block, rows, kept_rows, packing, attention)  # (M, C)
    kept_rows = kept_rows + block.ls1(mixed)
    kept_rows = kept_rows + block.ls2(block.mlp(block.norm2(kept_rows)))
    return rows.index_put((packing.rows,), kept_rows).reshape(B, N, C)


def _attend(block: Block, rows: Tensor, kept_rows: Tensor, packing: Packing, attention: Attention) -> Tensor:
    """Attention of kept queries, images apart: rows (B * N, C), kept_rows (M, C) -> projected output (M, C)."""
    attn = block.attn
    B, K = packing.source.shape
    C = attn.attn_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    normed = block.norm1(kept_rows)

    def project(x: Tensor, start: int, end: int) -> Tensor:
        return F.linear(x, weight[start:end], None if bias is None else bias[start:end])

    def heads(x: Tensor, length: int) -> Tensor:
        return x.reshape(B, length, attn.num_heads, attn.head_dim).transpose(1, 2)  # (B, h, length, d)

    query = heads(project(normed, 0, C).index_select(0, packing.source.flatten()), K)
    if attention == "full_context":
        N = rows.shape[0] // B
        context, visible = block.norm1(rows), None
        key, value = (heads(project(context, i * C, (i + 1) * C), N) for i in (1, 2))
    else:
        padded = packing.source.flatten()
        key, value = (heads(project(normed, i * C, (i + 1) * C).index_select(0, padded), K) for i in (1, 2))
        visible = (torch.arange(K, device=rows.device) < packing.counts[:, None])[:, None, None]  # (B, 1, 1, K)
    mixed = F.scaled_dot_product_attention(attn.q_norm(query), attn.k_norm(key), value, attn_mask=visible)
    mixed = mixed.transpose(1, 2).reshape(B * K, C).index_select(0, packing.slots)  # (M, C)
    return attn.proj(attn.norm(mixed))


def build(config: PrunedViTConfig, *, drop_path: float = 0.0) -> PrunedViT:
    """The model a config describes, randomly initialised.

    Raises:
        UnsupportedModel: timm doesn't know the name, or the model can't be pruned.
    """
    try:
        vit = timm.create_model(
            config.architecture,
            img_size=config.image_size_px,
            num_classes=len(config.labels),
            drop_path_rate=drop_path,
        )
    except (RuntimeError, TypeError) as error:
        raise UnsupportedModel(
            f"timm can't build {config.architecture!r} at {config.image_size_px} px: {error}"
        ) from error
    return PrunedViT(vit, config)


def check_supported(vit: nn.Module, name: str) -> None:
    """Raise UnsupportedModel, naming what is in the way, unless `vit` is a plain pre-norm VisionTransformer."""
    if not isinstance(vit, VisionTransformer):
        raise UnsupportedModel(f"{name} is a {type(vit).__name__}; only timm's VisionTransformer family can be pruned")
    for index, block in enumerate(vit.blocks):
        if type(block) is not Block:
            raise UnsupportedModel(f"{name}: layer {index} is a {type(block).__name__}, not timm's pre-norm Block")
        if type(block.attn).__name__ != "Attention" or getattr(block.attn, "gate", None) is not None:
            raise UnsupportedModel(f"{name}: layer {index} has a {type(block.attn).__name__} with parts unknown here")
    if vit.num_prefix_tokens < 1:
        raise UnsupportedModel(f"{name} has no CLS or register token; at least one must always be kept")
