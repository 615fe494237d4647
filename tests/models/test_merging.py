"""Token merging: sizes and means are right, twins merge at no loss, and the cost is what a forward multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import UnsupportedModel
from models.macs import shape_of
from models.merging import match, merge, merged_forward, merged_macs, patches_left
from models.pruned_vit import PrunedViT
from tests.models.builders import random_images, random_vit

CASES = [("test_vit", 96), ("vit_small_patch14_reg4_dinov2", 56)]


def few_kinds(model: PrunedViT, kinds: int, count: int) -> Tensor:
    """Images (count, 3, H, W) whose patches are copies of `kinds` random ones, at random places."""
    generator = torch.Generator().manual_seed(0)
    patch = model.vit.patch_embed.patch_size[0]
    side = model.config.image_size_px // patch
    palette = torch.randn(kinds, 3, patch, patch, generator=generator)
    tiles = palette[torch.randint(kinds, (count, side, side), generator=generator)]  # (count, side, side, 3, p, p)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, side * patch, side * patch)


@pytest.mark.parametrize(("architecture", "side"), CASES)
def test_merging_nothing_is_the_plain_model(architecture: str, side: int) -> None:
    model = random_vit(architecture, side)
    images = random_images(model, 3)
    with torch.inference_mode():
        torch.testing.assert_close(merged_forward(model, images, 0), model.vit(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merged", [1, 3, 5])
def test_twins_merge_without_changing_the_logits(merged: int) -> None:
    model = random_vit()
    images = few_kinds(model, 3, 4)
    with torch.inference_mode():
        model.vit.pos_embed[:, 1:] = 0  # or no two patches would be alike
        plain, fewer = model.vit(images), merged_forward(model, images, merged)
        strangers = random_images(model, 4)
        changed = merged_forward(model, strangers, merged) - model.vit(strangers)
    torch.testing.assert_close(fewer, plain, rtol=1e-3, atol=1e-3)
    assert changed.abs().max() > 0.02


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = random_vit()
    images = random_images(model, 3)
    with torch.inference_mode():
        together = merged_forward(model, images, 4)
        alone = torch.cat([merged_forward(model, image[None], 4) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_most_alike_pairs_are_matched() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.1, 1.0], [3.0, 0.1], [-1.0, 0.9], [-1.0, -1.0], [0.0, 1.0]]])
    matching = match(keys, 3)
    assert matching.source.tolist() == [[6, 0, 2]]  # the first set is 0, 2, 4 and 6; all but 4 have a near twin
    assert matching.target.tolist() == [[1, 3, 1]]
    assert matching.stays.tolist() == [[1, 3, 4, 5]]


@pytest.mark.parametrize(("merged", "matters"), [(0, False), (5, True)])
def test_keys_decide_what_merges(merged: int, matters: bool) -> None:
    model, width = random_vit(), random_vit().vit.embed_dim
    images = random_images(model, 3)
    with torch.inference_mode():
        for block in model.vit.blocks:  # queries of 0 attend to everything alike, whatever the keys
            block.attn.qkv.weight[:width] = 0
            block.attn.qkv.bias[:width] = 0
        before = merged_forward(model, images, merged)
        for block in model.vit.blocks:
            block.attn.qkv.weight[width : 2 * width] = block.attn.qkv.weight[width : 2 * width].flip(1)
        after = merged_forward(model, images, merged)
    assert bool((after - before).abs().max() > 1e-3) == matters


@pytest.mark.parametrize(("patches", "merged"), [(12, 6), (13, 6), (9, 1)])
def test_merged_patches_are_means_of_all_they_stand_for(patches: int, merged: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, size = torch.randn(2, patches, 8, generator=generator), torch.ones(2, patches)
    mean = x.mean(1)
    while size.shape[1] > merged * 2:
        x, size = merge(x, size, match(torch.randn(x.shape, generator=generator), merged))
        assert size.sum(1).tolist() == [patches, patches]
        torch.testing.assert_close((x * size[..., None]).sum(1) / patches, mean)


def test_a_pair_becomes_its_weighted_mean() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [1.0, 0.1]]])
    x, size = merge(torch.tensor([[[4.0], [7.0], [9.0], [1.0]]]), torch.tensor([[1.0, 1.0, 5.0, 2.0]]), match(keys, 2))
    assert size.tolist() == [[1.0, 8.0]]
    torch.testing.assert_close(x, torch.tensor([[[7.0], [(4.0 + 5 * 9.0 + 2 * 1.0) / 8]]]))


def test_a_layer_merges_at_most_half() -> None:
    assert patches_left(36, 8, 6) == (36, 28, 20, 12, 6, 3)
    assert patches_left(36, 100, 6) == (36, 18, 9, 5, 3, 2)
    with pytest.raises(ValueError, match="-1"):
        patches_left(36, -1, 6)


@pytest.mark.parametrize(("architecture", "side"), CASES)
@pytest.mark.parametrize("merged", [0, 1, 5, 100])
def test_macs_are_those_of_a_counted_forward(architecture: str, side: int, merged: int) -> None:
    model = random_vit(architecture, side)
    images, head_dim = random_images(model, 1), model.vit.blocks[0].attn.head_dim
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        merged_forward(model, images, merged)
    assert merged_macs(shape_of(model), merged, head_dim) == int(counter.get_total_flops()) // 2
    if merged == 0:
        assert merged_macs(shape_of(model), 0) == shape_of(model).dense


def test_gradients_reach_every_layer_and_autocast_works() -> None:
    model = random_vit().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = merged_forward(model, random_images(model, 2), 5)
    logits.float().square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.vit.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_head_that_pools_patches_is_refused() -> None:
    model = random_vit()
    model.vit.global_pool = "avg"
    with pytest.raises(UnsupportedModel):
        merged_forward(model, random_images(model, 1), 1)
