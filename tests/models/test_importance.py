"""Top-down impact: what reaches the head counts, and nothing else does."""

from __future__ import annotations

import torch

from models.importance import attention_weights, impacts, keep_most
from models.pruned_vit import PrunedViT
from tests.models.builders import random_images, random_vit


def found(model: PrunedViT) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model.trajectory(random_images(model, 3)).hidden
        return impacts(model.vit.blocks, hidden, model.vit.num_prefix_tokens)


def test_attention_weights_are_those_that_mix_values() -> None:
    model = random_vit()
    attn, normed = model.vit.blocks[1].attn, torch.randn(2, 37, model.vit.embed_dim)
    heads, d, width = attn.num_heads, attn.head_dim, attn.attn_dim
    with torch.inference_mode():
        attn.qkv.weight[2 * width :] = attn.qkv.weight[2 * width : 2 * width + d].repeat(heads, 1)  # one value for all
        attn.qkv.bias[2 * width :] = 0
        attn.proj.weight.copy_(torch.eye(d).repeat(width // d, heads) / heads)  # the mean over heads, repeated
        attn.proj.bias.zero_()
        weights = attention_weights(attn, normed)
        mixed = weights @ (normed @ attn.qkv.weight[-d:].T)
        torch.testing.assert_close(attn(normed)[..., :d], mixed, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 37))
    assert weights.amax(-1).std() > 0.01  # not all alike, or any would do


def test_patches_matter_less_and_less_until_nobody_reads_them() -> None:
    impact = found(random_vit())
    assert impact.shape == (6, 3, 36)
    assert (impact >= 0).all()
    assert not impact[-1].any()
    assert (impact[:-1] > 0).all()


def test_a_model_that_computes_in_half_precision_finds_the_same_impacts() -> None:
    model = random_vit()
    with torch.inference_mode():
        hidden = model.trajectory(random_images(model, 3)).hidden
        full = impacts(model.vit.blocks, hidden, model.vit.num_prefix_tokens)
        half = impacts(model.bfloat16().vit.blocks, hidden, model.vit.num_prefix_tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=1e-4)


def test_a_layer_that_changes_nothing_and_a_patch_that_nobody_attends_to_have_no_impact() -> None:
    model = random_vit()
    with torch.inference_mode():
        for part in (model.vit.blocks[2].attn.proj, model.vit.blocks[2].mlp.fc2):
            part.weight.zero_()
            part.bias.zero_()
    assert [bool(layer.any()) for layer in found(model)] == [True, True, False, True, True, False]
    with torch.inference_mode():
        model.vit.blocks[5].attn.qkv.weight[: 2 * model.vit.embed_dim] = 0  # the last layer attends to all alike
        model.vit.blocks[5].attn.qkv.bias[: 2 * model.vit.embed_dim] = 0
        hidden = model.trajectory(random_images(model, 3)).hidden
    change = (hidden[5] - hidden[4]).norm(dim=-1) / hidden[4].norm(dim=-1)
    torch.testing.assert_close(found(model)[4], change[:, 1:] / 37 / 2, rtol=1e-3, atol=1e-6)


def test_the_least_impact_is_skipped_whatever_layer_and_image_it_is_in() -> None:
    impact = torch.tensor([[[0.5, 0.0, 0.2]], [[0.1, 0.9, 0.3]]])
    assert keep_most(impact, 0.0).all()
    assert keep_most(impact, 0.4).tolist() == [[[True, False, True]], [[False, True, True]]]
    assert keep_most(impact, 0.99).sum() == 1
