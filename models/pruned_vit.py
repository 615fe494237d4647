"""Any timm VisionTransformer with a gate in some of its layers.

Two execution paths with one meaning. `masked` computes every token and discards what was skipped: the reference, and
what training uses. `sparse` computes kept tokens only: what serving uses. A last layer without a gate computes only
the tokens that the head reads, which is exact. It knows no thresholds' origin, no data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerScale, Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from models.backbone import UnsupportedModel, check_size, check_supported, create, reads_prefix_only
from models.bypass import Bypass
from models.config import Attention as AttentionMode
from models.config import PrunedViTConfig
from models.gates import build_gate
from models.regularise import SCALINGS
from models.selection import keep_patches, keep_tokens, kept_rows

Execution = Literal["masked", "sparse"]
Decide = Callable[[Tensor, Tensor], Tensor]  # gate logits (B, P), thresholds (B,) -> kept (B, P)
Attend = Callable[[Attention, Tensor], Tensor]  # normed tokens (B, N, C) -> what they attend to (B, N, C), unprojected


class PrunedOutput(NamedTuple):
    """What one forward gave; layers without a gate score 1 and keep everything."""

    logits: Tensor  # (B, classes) float
    scores: Tensor  # (B, L, P) float in [0, 1]
    kept: Tensor  # (B, L, P) bool; float where `decide` gives that


class Trajectory(NamedTuple):
    """The dense model's hidden states: what the cosine labels are made from."""

    logits: Tensor  # (B, classes)
    hidden: tuple[Tensor, ...]  # L + 1 tensors (B, N, C): each layer's input, then the last output before the norm


class PrunedViT(nn.Module):
    """An unmodified timm ViT and a gate for each gated layer; prefix tokens are always kept."""

    def __init__(self, vit: VisionTransformer, config: PrunedViTConfig) -> None:
        super().__init__()
        check_supported(vit, config.architecture)
        check_size(vit, config.image_size_px)
        if not set(named := config.gated_layers + config.exits) <= set(range(len(vit.blocks))):
            raise ValueError(f"gated_layers and exits {named}: the model has layers 0 to {len(vit.blocks) - 1}")
        self.config = config
        self.vit = vit
        self.masked_block = masked_block  # training may compile it
        self.gates = nn.ModuleDict(
            {str(i): build_gate(config.gate, vit.embed_dim, config.gate_hidden) for i in config.gated_layers}
        )
        bypassed = config.gated_layers if config.bypass_rank else ()
        self.bypasses = nn.ModuleDict({str(i): Bypass(vit.embed_dim, config.bypass_rank) for i in bypassed})
        heads = {str(i): nn.Linear(vit.embed_dim, len(config.labels)) for i in config.exits}
        self.exits = nn.ModuleDict(heads)  # `forward` asks none of them
        for name in config.scaled:
            SCALINGS[name](vit)

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
        if images.is_floating_point():  # else the embedding takes pixels, as the served graphs' does
            images = images.to(self.vit.patch_embed.proj.weight.dtype)
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        return self.vit.norm_pre(self.vit.patch_drop(x))

    def head(self, x: Tensor) -> Tensor:
        """Tokens after the last layer (B, N, C), or its prefix tokens alone -> logits (B, classes)."""
        return self.vit.forward_head(self.vit.norm(x))

    def gate_logits(self, layer: int, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """The gate's logits (B, P) for a gated layer's input tokens (B, N, C); `normed` saves computing them again."""
        block = self.vit.blocks[layer]
        normed = block.norm1(x) if normed is None else normed
        return self.gates[str(layer)](block, x, normed, self.vit.num_prefix_tokens)

    def forward(
        self,
        images: Tensor,
        threshold: Tensor,
        execution: Execution = "masked",
        decide: Decide = keep_patches,
        attend: Attend | None = None,
    ) -> PrunedOutput:
        """Classify with each image's own score threshold.

        Args:
            images: (B, 3, H, W) float, normalised.
            threshold: (B,) float in [0, 1].
            execution: `masked` or `sparse`; the outputs are the same up to rounding. `sparse` is for inference.
            decide: which patches to keep; training gives a differentiable rule, for `masked` alone.
            attend: attention among all tokens, where the sparse path has it; an export gives its runtime's operator.
        """
        if execution == "sparse" and self.config.scaled:
            raise UnsupportedModel(f"a model with scaled {' and '.join(self.config.scaled)} has no sparse path")
        run = self.masked_block if execution == "masked" else partial(sparse_block, attend=attend)
        prefix = self.vit.num_prefix_tokens
        x = self.embed(images)
        everything = torch.ones_like(x[:, prefix:, 0])  # (B, P)
        all_scores, all_kept = [], []
        for layer, block in enumerate(self.vit.blocks):
            scores, kept = everything, everything > 0
            if layer in self.config.gated_layers:
                normed = block.norm1(x)
                logits = self.gate_logits(layer, x, normed)
                scores, kept = logits.sigmoid(), decide(logits, threshold)
                update = self.bypasses[str(layer)](normed) if self.bypasses else None
                x = run(block, x, normed, keep_tokens(kept, prefix), self.config.in_layer(layer), update)
            elif layer == self.layers - 1 and reads_prefix_only(self.vit):
                x = plain_block(block, x, prefix)
            else:
                x = block(x) if execution == "masked" else plain_block(block, x, x.shape[1], attend)
            all_scores.append(scores)
            all_kept.append(kept)
        return PrunedOutput(self.head(x), torch.stack(all_scores, 1), torch.stack(all_kept, 1))

    def dense(self, images: Tensor) -> Tensor:
        """The plain model's logits (B, classes), as `forward` gives them at threshold 0; no gate runs."""
        x = self.embed(images)
        *blocks, last = self.vit.blocks
        for block in blocks:
            x = block(x)
        x = plain_block(last, x, self.vit.num_prefix_tokens) if reads_prefix_only(self.vit) else last(x)
        return self.head(x)

    def trajectory(self, images: Tensor) -> Trajectory:
        """The dense model's forward with every hidden state; gates play no part."""
        hidden = [self.embed(images)]
        for block in self.vit.blocks:
            hidden.append(block(hidden[-1]))
        return Trajectory(self.head(hidden[-1]), tuple(hidden))


def masked_block(
    block: Block, x: Tensor, normed: Tensor, keep: Tensor, config: PrunedViTConfig, update: Tensor | None = None
) -> Tensor:
    """One layer on all tokens, then the idle ones are put back: x, normed (B, N, C), keep (B, N) -> (B, N, C).

    `update` (B, N, C) is what idle tokens get in the layer's place. A float `keep` of zeros and ones carries the
    gradient of a straight-through gate.
    """
    keys = (keep > 0.5)[:, None, None, :] if config.attention == "kept_only" else None  # (B, 1, 1, N)
    mixed = x + block.drop_path1(block.ls1(block.attn(normed, attn_mask=keys)))
    idle = mixed if config.skips == "mlp" else x
    idle = idle if update is None else idle + update
    after = mixed + block.drop_path2(block.ls2(block.mlp(block.norm2(mixed))))
    if keep.dtype == torch.bool:
        return torch.where(keep[..., None], after, idle)
    return idle + keep[..., None].to(x.dtype) * (after - idle)


def sparse_block(
    block: Block,
    x: Tensor,
    normed: Tensor,
    keep: Tensor,
    config: PrunedViTConfig,
    update: Tensor | None = None,
    attend: Attend | None = None,
) -> Tensor:
    """One layer on kept tokens only; evaluation mode. Idle tokens still give keys and values in `full_context`.

    x, normed (B, N, C) float, keep (B, N) bool -> (B, N, C). Kept tokens are packed without padding: every projection
    and MLP runs on exactly M rows, all that are kept in the batch. `update` (B, N, C) is what idle tokens get in the
    layer's place. In `full_context` `attend` may give all tokens' attention: faster than leaving out idle queries.
    """
    B, N, C = x.shape
    kept = kept_rows(keep)  # (M,)
    if config.skips == "mlp":
        tokens = (x + block.ls1(block.attn(normed))).reshape(B * N, C)
        rows = tokens.index_select(0, kept)  # (M, C)
    else:
        tokens = x.reshape(B * N, C)
        if attend is None or config.attention != "full_context":
            mixed = _kept_attention(block.attn, normed, keep, kept, config.attention)
        else:
            mixed = attend(block.attn, normed).flatten(0, 1).index_select(0, kept)
        rows = tokens.index_select(0, kept) + scaled(block.ls1, block.attn.proj, block.attn.norm(mixed))
    rows = rows + feed_forward(block, block.norm2(rows))
    tokens = tokens if update is None else tokens + update.flatten(0, 1)
    return tokens.index_put((kept,), rows).reshape(B, N, C)


def plain_block(block: Block, x: Tensor, first: int, attend: Attend | None = None) -> Tensor:
    """One layer for the `first` tokens alone, exactly; all are their context: x (B, N, C) -> (B, first, C).

    timm's own block where `first` is N, with fewer operators: LayerScales go into the weights. There `attend` may
    stand for `self_attention`.
    """
    normed = block.norm1(x)
    mixed = self_attention(block.attn, normed, first) if attend is None else attend(block.attn, normed)
    x = x[:, :first] + block.drop_path1(scaled(block.ls1, block.attn.proj, block.attn.norm(mixed)))
    return x + block.drop_path2(feed_forward(block, block.norm2(x)))


def self_attention(attn: Attention, normed: Tensor, first: int) -> Tensor:
    """What the `first` tokens attend to among all: normed (B, N, C) -> (B, first, C), before norm and projection."""
    every = normed.flatten(0, 1)
    query = _project(attn, 0, normed[:, :first].flatten(0, 1))
    key, value = _project(attn, 1, every), _project(attn, 2, every)
    return _mix(attn, query, key, value, normed.shape[0]).reshape(-1, first, attn.attn_dim)


def _project(attn: Attention, part: int, x: Tensor) -> Tensor:
    """Queries (part 0), keys (1) or values (2) alone."""
    rows = slice(part * attn.attn_dim, (part + 1) * attn.attn_dim)
    return F.linear(x, attn.qkv.weight[rows], None if attn.qkv.bias is None else attn.qkv.bias[rows])


def _kept_attention(attn: Attention, normed: Tensor, keep: Tensor, kept: Tensor, attention: AttentionMode) -> Tensor:
    """What kept tokens attend to: normed (B, N, C), kept (M,) of keep (B, N) -> (M, C), before norm and projection.

    Projections run on kept rows. The products within attention run on all N places of an image, so that no image's
    arithmetic depends on its neighbours: an idle place holds anything finite, and what comes of it is dropped.
    """
    every = normed.flatten(0, 1)
    rows = every.index_select(0, kept)  # (M, C)

    def everywhere(projected: Tensor) -> Tensor:
        """Rows of kept tokens (M, C) in their places among all (B * N, C)."""
        return every.index_put((kept,), projected)

    query = everywhere(_project(attn, 0, rows))
    if attention == "full_context":
        key, value, mask = _project(attn, 1, every), _project(attn, 2, every), None
    else:
        key, value = everywhere(_project(attn, 1, rows)), everywhere(_project(attn, 2, rows))
        mask = keep[:, None, None, :]
    return _mix(attn, query, key, value, keep.shape[0], mask).index_select(0, kept)


def _mix(attn: Attention, query: Tensor, key: Tensor, value: Tensor, B: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: query (B * Q, C), key and value (B * N, C), mask (B, 1, 1, N) -> (B * Q, C)."""
    query, key, value = (
        t.reshape(B, -1, attn.num_heads, attn.head_dim).transpose(1, 2) for t in (query, key, value)
    )  # (B, h, Q or N, d)
    weights = (attn.q_norm(query) * attn.scale) @ attn.k_norm(key).transpose(-2, -1)  # (B, h, Q, N)
    if mask is not None:
        weights = weights.masked_fill(~mask, -math.inf)
    return (weights.softmax(-1) @ value).transpose(1, 2).flatten(2).flatten(0, 1)


def feed_forward(block: Block, x: Tensor) -> Tensor:
    """The MLP and its LayerScale."""
    mlp = block.mlp
    if type(mlp) is not Mlp:
        out: Tensor = block.ls2(mlp(x))
        return out
    return scaled(block.ls2, mlp.fc2, mlp.norm(mlp.act(mlp.fc1(x))))


def scaled(scale: nn.Module, linear: nn.Linear, x: Tensor) -> Tensor:
    """`scale(linear(x))`; a LayerScale goes into the weights, which a runtime multiplies once, when it loads them."""
    if not isinstance(scale, LayerScale):
        out: Tensor = scale(linear(x))
        return out
    bias = None if linear.bias is None else linear.bias * scale.gamma
    return F.linear(x, linear.weight * scale.gamma[:, None], bias)


def build(config: PrunedViTConfig, *, drop_path: float = 0.0, any_size: bool = False) -> PrunedViT:
    """The model a config describes, randomly initialised; `any_size` resamples the position embedding in each forward.

    Raises:
        UnsupportedModel: timm doesn't know the name, or the model can't be pruned.
    """
    size_px, classes = config.image_size_px, len(config.labels)
    vit = create(config.architecture, size_px, classes, drop_path=drop_path, any_size=any_size)
    return PrunedViT(vit, config)
