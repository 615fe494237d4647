"""Small random pruned ViTs whose gates disagree: the shapes of the real ones, none of the wait."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.config import Attention, PrunedViTConfig, Skips
from models.pruned_vit import PrunedViT, build

LABELS = ("a", "b", "c", "d", "e")


def random_vit(
    architecture: str = "test_vit",
    image_size_px: int = 96,
    attention: Attention = "full_context",
    gated_layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    seed: int = 0,
    gate: str = "mlp",
    skips: Skips = "layer",
    bypass_rank: int = 0,
    full_layers: int = 0,
    mlp_layers: int = 0,
) -> PrunedViT:
    """A model whose weights are large enough that every layer, head and gate matters to the logits."""
    torch.manual_seed(seed)
    config = PrunedViTConfig(architecture, image_size_px, LABELS, attention, gated_layers, gate, skips=skips)
    model = build(replace(config, bypass_rank=bypass_rank, full_layers=full_layers, mlp_layers=mlp_layers))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.5 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "cls_token", "reg_token", "dist_token", "pos_embed")):
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def random_images(model: PrunedViT, count: int, seed: int = 0) -> Tensor:
    """Normalised images (count, 3, H, W)."""
    side = model.config.image_size_px
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
