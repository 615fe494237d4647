"""Remedies against over-smoothing: right by their formulas, and no change at all until they learn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.backbone import UnsupportedModel
from models.merging import merged_forward
from models.regularise import ScaledAttention, diversity_loss, scale_attention, scale_features
from tests.models.builders import random_images, random_vit

SCALES: list[Callable[[VisionTransformer], None]] = [scale_attention, scale_features]


def attended(attn: ScaledAttention, x: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer's attention maps (B, h, N, N) and values (B, h, N, d), written out; visible (B, 1, 1, N) bool."""
    query, key, value = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    logits = attn.q_norm(query) @ attn.k_norm(key).mT * attn.head_dim**-0.5
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    return logits.softmax(-1), value


def projected(attn: ScaledAttention, mixed: Tensor) -> Tensor:
    out: Tensor = attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2)))
    return out


def masks(tokens: int) -> list[Tensor | None]:
    """No mask, and one that hides different tokens of each of two images."""
    hidden = torch.rand(2, 1, 1, tokens, generator=torch.Generator().manual_seed(0)) > 0.4
    hidden[..., 0] = True
    return [None, hidden]


def test_diversity_is_the_mean_over_pairs() -> None:
    patches = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [
        torch.cosine_similarity(image[i], image[j], dim=0).abs()
        for image in patches
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    torch.testing.assert_close(diversity_loss(patches), torch.stack(pairs).mean())


def test_diversity_goes_from_right_angles_to_parallel() -> None:
    assert diversity_loss(torch.eye(4)[None]).item() == 0
    opposite = torch.tensor([[[1.0, 2.0], [-2.0, -4.0], [3.0, 6.0]]])
    assert diversity_loss(opposite).item() == pytest.approx(1)


def test_descent_on_diversity_drives_patches_apart() -> None:
    patches = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)) + 1
    patches.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = diversity_loss(patches)
    (step,) = torch.autograd.grad(before, patches)
    assert before.dtype == torch.float32
    assert diversity_loss(patches - step) < before


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("attention", ["full_context", "kept_only"])
def test_new_factors_change_nothing(scale: Callable[[VisionTransformer], None], attention: str) -> None:
    model = random_vit(attention=attention, gated_layers=(1, 3))  # type: ignore[arg-type]
    images, threshold = random_images(model, 3), torch.tensor([0.0, 0.5, 0.6])
    names, parameters = list(model.state_dict()), {id(p) for p in model.parameters()}
    with torch.inference_mode():
        before = model(images, threshold)
    scale(model.vit)
    with torch.inference_mode():
        after = model(images, threshold)
    assert torch.equal(after.kept, before.kept)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    assert [name for name in model.state_dict() if not name.endswith(("high_pass", "_scale"))] == names
    assert parameters < {id(p) for p in model.parameters()}


def test_attention_scale_is_the_papers_map() -> None:
    model = random_vit()
    scale_attention(model.vit)
    attn = model.vit.blocks[2].attn
    x = torch.randn(2, 10, model.vit.embed_dim, generator=torch.Generator().manual_seed(0))
    w = torch.linspace(-0.5, 0.8, attn.num_heads)
    with torch.inference_mode():
        attn.high_pass.copy_(w)
        for visible in masks(10):
            A, value = attended(attn, x, visible)
            low = torch.full_like(A, 0.1) if visible is None else (visible / visible.sum(-1, True)).expand_as(A)
            scaled = low + (1 + w[:, None, None]) * (A - low)
            torch.testing.assert_close(attn(x, attn_mask=visible), projected(attn, scaled @ value))


def test_feature_scale_is_the_papers_sum() -> None:
    model = random_vit()
    scale_features(model.vit)
    attn = model.vit.blocks[2].attn
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 10, model.vit.embed_dim, generator=generator)
    s, t = torch.randn(2, model.vit.embed_dim, generator=generator)
    with torch.inference_mode():
        attn.mean_scale.copy_(s)
        attn.rest_scale.copy_(t)
        for visible in masks(10):
            A, value = attended(attn, x, visible)
            plain, scaled = projected(attn, A @ value), attn(x, attn_mask=visible)
            for image in range(2):
                seen = slice(None) if visible is None else visible[image, 0, 0]
                mean = plain[image, seen].mean(0)
                torch.testing.assert_close(scaled[image], plain[image] + s * mean + t * (plain[image] - mean))


def test_both_together_learn_and_stay_when_asked_for_again() -> None:
    model = random_vit(gated_layers=(1, 3)).train()
    scale_features(model.vit)
    scale_attention(model.vit)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(random_images(model, 2), torch.tensor([0.4, 0.5])).logits
    factors = [p for name, p in model.named_parameters() if name.endswith(("high_pass", "_scale"))]
    assert len(factors) == 3 * (model.layers - 1)  # nothing reads the last layer's patches
    for gradient in torch.autograd.grad(logits.float().square().sum(), factors):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
    model.vit.blocks[0].attn.high_pass.data.fill_(0.3)
    scale_attention(model.vit)
    assert model.vit.blocks[0].attn.high_pass.mean().item() == pytest.approx(0.3)


@pytest.mark.parametrize("scale", SCALES)
def test_merging_refuses_scales_it_would_ignore(scale: Callable[[VisionTransformer], None]) -> None:
    model = random_vit()
    scale(model.vit)
    with pytest.raises(UnsupportedModel, match="ScaledAttention"):
        merged_forward(model, random_images(model, 1), 1)
