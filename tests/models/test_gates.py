"""The write-up's gate sees each patch alone, the product's sees it in its image; rivals rank or guess."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.config import PrunedViTConfig
from models.gates import GATES, ContextGate, MLPGate, build_gate
from models.labels import keep_labels, scaled_cosine_similarity
from models.pruned_vit import build
from tests.models.builders import random_images, random_vit


def test_vit_base_has_gates_of_768_x_64_x_1() -> None:
    model = build(PrunedViTConfig("vit_base_patch16_224", 32, ("a", "b"), gated_layers=tuple(range(12))))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.gates["11"].state_dict().items()}
    assert shapes == {"fc1.weight": (64, 768), "fc1.bias": (64,), "fc2.weight": (1, 64), "fc2.bias": (1,)}
    assert len(model.gates) == 12


def test_a_score_depends_on_its_own_patch_only_and_prefix_tokens_have_none() -> None:
    gate, x = MLPGate(16), torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 3] += 1
    before, after = gate(None, x, x, 2), gate(None, changed, changed, 2)
    assert before.shape == (2, 5)
    assert (before != after).nonzero()[:, 1].unique().tolist() == [1]


def tokens(count: int = 7) -> Tensor:
    return torch.randn(2, count, 16, generator=torch.Generator().manual_seed(0))


def changed_scores(gate: ContextGate, normed: Tensor, token: int) -> list[int]:
    """Which patches' logits move when one token does (two prefix tokens)."""
    other = normed.clone()
    other[:, token] += 1
    with torch.no_grad():
        before, after = (gate(None, torch.zeros_like(x), x, 2) for x in (normed, other))
    assert before.shape == (2, 5)
    return [int(patch) for patch in (before != after).nonzero()[:, 1].unique()]


@pytest.mark.parametrize(
    ("name", "by_cls", "by_patch"),
    [
        ("context", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ("context_cls", [0, 1, 2, 3, 4], [1]),
        ("context_mean", [], [0, 1, 2, 3, 4]),
        ("normed", [], [1]),
    ],
)
def test_a_context_gate_sees_the_cls_token_and_the_mean(name: str, by_cls: list[int], by_patch: list[int]) -> None:
    torch.manual_seed(0)
    gate = build_gate(name, 16, 64)
    assert isinstance(gate, ContextGate)
    assert changed_scores(gate, tokens(), 0) == by_cls
    assert changed_scores(gate, tokens(), 1) == []  # another prefix token
    assert changed_scores(gate, tokens(), 3) == by_patch


def test_another_patch_matters_through_the_mean_alone() -> None:
    torch.manual_seed(0)
    gate, normed = ContextGate(16), tokens()
    other = normed.clone()
    other[:, 3] += 1
    other[:, 4] -= 1  # the mean stays
    with torch.no_grad():
        before, after = (gate(None, x, x, 2) for x in (normed, other))
    torch.testing.assert_close(before[:, [0, 3, 4]], after[:, [0, 3, 4]], atol=1e-6, rtol=0)
    assert (before[:, 1:3] - after[:, 1:3]).abs().min() > 1e-3


def test_the_rivals_scores_are_ranks_and_chance() -> None:
    for name in ("cls_attention", "random"):
        model = random_vit(gate=name)
        images = random_images(model, 3)
        torch.manual_seed(0)
        with torch.inference_mode():
            scores, again = (model(images, torch.zeros(3)).scores for _ in range(2))  # (3, 6, 36)
        if name == "random":
            assert (scores != again).float().mean() > 0.99
            assert 0.4 < scores.mean() < 0.6
        else:
            ranks = torch.arange(36).add(0.5) / 36
            torch.testing.assert_close(scores.sort(-1).values, ranks.expand(3, 6, 36), atol=1e-5, rtol=0)
            assert torch.equal(scores, again)


def test_cls_attention_ranks_patches_as_the_layer_itself_attends() -> None:
    model = random_vit(gate="cls_attention", gated_layers=(2,))
    images = random_images(model, 2)
    with torch.inference_mode():
        x = model.embed(images)
        for block in model.vit.blocks[:2]:
            x = block(x)
        block = model.vit.blocks[2]
        attn, normed = block.attn, block.norm1(x)
        query, key, _ = attn.qkv(normed).reshape(2, 37, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        weights = ((attn.q_norm(query) * attn.scale) @ attn.k_norm(key).transpose(-1, -2)).softmax(-1)
        attended = weights[:, :, 0, 1:].mean(1)  # (B, P)
        scores = model.gate_logits(2, x)
    assert torch.equal(scores.argsort(-1), attended.argsort(-1))


def test_the_oracle_keeps_what_the_cosine_label_of_its_layer_keeps() -> None:
    model = random_vit(gate="cosine", gated_layers=(2,))
    images, prefix = random_images(model, 4), model.vit.num_prefix_tokens
    with torch.inference_mode():
        before, after = (state[:, prefix:] for state in model.trajectory(images).hidden[2:4])
        cosine = float(scaled_cosine_similarity(before, after).median())
        kept = model(images, torch.full((4,), 1 - cosine), "sparse").kept[:, 2]
        assert model(images, torch.zeros(4)).kept.all()
    assert (kept == keep_labels(before, after, cosine)).float().mean() > 0.99  # rounding at the median itself
    assert 0.4 < kept.float().mean() < 0.6


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match=f"'no' isn't one of {', '.join(GATES)}"):
        build_gate("no", 16, 64)
