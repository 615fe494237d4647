"""The closed form counts what a forward really multiplies."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import Attention
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
    assert shape_of(model).dense == counted_macs(model, random_images(model, 1), None)


@pytest.mark.parametrize("attention", ["full_context", "kept_only"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.5, 0.6, 1.0])
def test_pruned_macs_are_those_of_a_counted_sparse_forward(attention: Attention, threshold: float) -> None:
    model = random_vit(attention=attention, gated_layers=(0, 2, 3, 5))
    images = random_images(model, 1)
    with torch.inference_mode():
        kept = model(images, torch.tensor([threshold])).kept
    assert used_macs(shape_of(model), kept).tolist() == [counted_macs(model, images, threshold)]


def test_the_real_model_costs_what_the_literature_says() -> None:
    model = random_vit("vit_small_patch14_dinov2", 224)
    assert shape_of(model).dense == pytest.approx(6.1e9, rel=0.01)  # "GFLOPs" in papers, which are GMACs
