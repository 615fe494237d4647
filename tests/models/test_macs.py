"""The closed form counts what a forward really multiplies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import AttentionPoolPrr, SwiGLU, SwiGLUPacked
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import Skips
from models.macs import shape_of, used_macs
from models.pruned_vit import PrunedViT
from tests.models.builders import random_images, random_vit


def counted_macs(model: PrunedViT, images: torch.Tensor, threshold: float | None) -> int:
    """What torch's counter sees of one image; the counter counts two FLOPs a MAC."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if threshold is None:
            model.vit(images)
        else:
            model(images, torch.tensor([threshold]), "sparse")
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("architecture", ["test_vit", "vit_small_patch14_reg4_dinov2"])
def test_dense_macs_are_those_of_a_counted_forward(architecture: str) -> None:
    model = random_vit(architecture, 96 if architecture == "test_vit" else 56)
    shape, images = shape_of(model), random_images(model, 1)
    assert shape.timm_forward == counted_macs(model, images, None)
    plain = random_vit(architecture, model.config.image_size_px, gated_layers=())
    assert shape.dense == counted_macs(plain, images, 0.0) < shape.timm_forward


KINDS: tuple[dict[str, Any], ...] = (
    {"attention": "full_context", "gated_layers": (0, 2, 3, 5)},
    {"attention": "kept_only", "gated_layers": (0, 2, 3, 5)},
    {"skips": "mlp", "gated_layers": (1, 2)},
    {"attention": "kept_only", "full_layers": 3, "gated_layers": (0, 2, 3, 5)},
    {"mlp_layers": 2, "gated_layers": (0, 1, 2, 4)},
    {"gate": "context", "gated_layers": (0, 1, 2, 3, 4)},
    {"gate": "normed", "gated_layers": (0, 1)},
    {"bypass_rank": 4, "gated_layers": (0, 2, 4)},
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.5, 0.6, 1.0])
def test_pruned_macs_are_those_of_a_counted_sparse_forward(kind: dict[str, Any], threshold: float) -> None:
    model = random_vit(**kind)
    images = random_images(model, 1)
    with torch.inference_mode():
        kept = model(images, torch.tensor([threshold])).kept
    counted = counted_macs(model, images, threshold)
    assert used_macs(shape_of(model), kept, gated=True).tolist() == [counted - idle_attention_macs(model, kept)]


def idle_attention_macs(model: PrunedViT, kept: torch.Tensor) -> int:
    """What is computed, dropped and not counted (see `models.macs`): the attention products of idle places."""
    tokens, width = model.patches + model.vit.num_prefix_tokens, model.vit.embed_dim
    used = kept.sum(-1).flatten() + model.vit.num_prefix_tokens  # of each layer
    total = 0
    for layer in model.config.gated_layers:
        own = model.config.in_layer(layer)
        seen = int(used[layer]) if own.attention == "kept_only" else tokens
        total += 0 if own.skips == "mlp" else 2 * width * (tokens * tokens - int(used[layer]) * seen)
    return total


def costs_what_is_counted(model: PrunedViT) -> None:
    """In full and at a threshold, for one image."""
    images = random_images(model, 1)
    assert shape_of(model).timm_forward == counted_macs(model, images, None)
    with torch.inference_mode():
        kept = model(images, torch.tensor([0.5])).kept
    counted = counted_macs(model, images, 0.5) - idle_attention_macs(model, kept)
    assert used_macs(shape_of(model), kept, gated=True).tolist() == [counted]


@pytest.mark.parametrize(("pool", "prefix"), [("map", True), ("map", False), ("prr", True)])
def test_attention_pooling_is_counted(pool: str, prefix: bool) -> None:
    model = random_vit("test_vit3", 64, gated_layers=(1, 4))
    if pool == "prr":
        model.vit.attn_pool = AttentionPoolPrr(model.vit.embed_dim, num_heads=3, pool_type="avg")
    model.vit.pool_include_prefix = prefix
    model.requires_grad_(False)  # the counter can't follow a parameter that is expanded
    costs_what_is_counted(model)


@pytest.mark.parametrize("kind", [partial(SwiGLUPacked, hidden_features=256), partial(SwiGLU, hidden_features=128)])
@pytest.mark.parametrize("skips", ["layer", "mlp"])
def test_a_gated_mlp_costs_its_three_matrices(kind: Callable[[int], nn.Module], skips: Skips) -> None:
    model = random_vit(gated_layers=(1, 2), skips=skips)
    for block in model.vit.blocks:
        block.mlp = kind(model.vit.embed_dim).eval()
    costs_what_is_counted(model)


def test_the_real_model_costs_what_the_literature_says() -> None:
    model = random_vit("vit_small_patch14_dinov2", 224)
    assert shape_of(model).timm_forward == pytest.approx(6.1e9, rel=0.01)  # "GFLOPs" in papers, which are GMACs
