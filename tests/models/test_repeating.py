"""Repeated attention: nothing repeated is the plain model, and the cost is what a forward multiplies."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.macs import shape_of
from models.repeating import repeated_forward, repeated_macs, repeating_layers
from tests.models.builders import random_images, random_vit

CASES = [("test_vit", 96), ("vit_small_patch14_reg4_dinov2", 56), ("test_vit2", 64)]


@pytest.mark.parametrize(("architecture", "side"), CASES)
def test_repeating_nothing_is_the_plain_model(architecture: str, side: int) -> None:
    model = random_vit(architecture, side)
    images = random_images(model, 3)
    with torch.inference_mode():
        torch.testing.assert_close(repeated_forward(model, images, 0), model.vit(images), rtol=1e-4, atol=1e-4)


def test_the_layers_are_the_papers_and_never_the_first_or_last() -> None:
    assert list(repeating_layers(12, 6)) == [2, 3, 4, 5, 6, 7]
    assert list(repeating_layers(6, 4)) == [1, 2, 3, 4]
    for layers, count in ((6, 5), (12, -1), (12, 10)):
        with pytest.raises(ValueError, match=f"{count} layers"):
            repeating_layers(layers, count)


def test_layers_that_attend_alike_lose_nothing_by_repeating() -> None:
    model = random_vit()
    with torch.inference_mode():
        for block in model.vit.blocks[:3]:  # the same values for every token, whatever it is
            block.attn.load_state_dict(model.vit.blocks[0].attn.state_dict())
            block.attn.qkv.weight.zero_()
        images = random_images(model, 3)
        torch.testing.assert_close(repeated_forward(model, images, 2), model.vit(images), rtol=1e-3, atol=1e-3)
        assert (repeated_forward(model, images, 3) - model.vit(images)).abs().max() > 0.02


def test_a_repeating_layers_own_attention_plays_no_part() -> None:
    model = random_vit()
    images = random_images(model, 3)

    def change(layer: int) -> float:
        with torch.inference_mode():
            before = repeated_forward(model, images, 2)
            model.vit.blocks[layer].attn.proj.weight.neg_()
            return float((repeated_forward(model, images, 2) - before).abs().max())

    assert [change(layer) > 1e-3 for layer in range(4)] == [True, False, False, True]


@pytest.mark.parametrize(("architecture", "side"), CASES)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_macs_are_those_of_a_counted_forward(architecture: str, side: int, count: int) -> None:
    model = random_vit(architecture, side)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        repeated_forward(model, random_images(model, 1), count)
    assert repeated_macs(shape_of(model), count) == int(counter.get_total_flops()) // 2
