"""Two execution paths, one meaning, whatever the architecture, attention, thresholds and neighbours."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import HybridEmbed
from torch import nn

from models import checkpoint
from models.backbone import UnsupportedModel, check_supported
from models.bypass import Bypass
from models.config import Attention, PrunedViTConfig, Skips
from models.pruned_vit import Execution, PrunedViT, build, self_attention
from tests.models.builders import LABELS, random_images, random_vit

ARCHITECTURES = {  # name -> (input px, what it stands for)
    "test_vit": (96, "plain"),
    "vit_tiny_patch16_224": (64, "vit_base's layout"),
    "deit_tiny_distilled_patch16_224": (64, "two prefix tokens"),
    "vit_small_patch14_reg4_dinov2": (56, "registers and layer scale"),
    "test_vit2": (64, "average pooling of patches"),
}
EXECUTIONS: tuple[Execution, ...] = ("masked", "sparse")
ATTENTIONS: tuple[Attention, ...] = ("full_context", "kept_only")
MIXED = torch.tensor([0.0, 0.3, 0.5, 0.5, 0.7, 1.0])


def both(model: PrunedViT, images: torch.Tensor, threshold: torch.Tensor) -> None:
    with torch.inference_mode():
        masked, sparse = model(images, threshold, "masked"), model(images, threshold, "sparse")
    assert torch.equal(masked.kept, sparse.kept)
    torch.testing.assert_close(sparse.logits, masked.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_equals_masked_with_mixed_thresholds(architecture: str, attention: Attention) -> None:
    model = random_vit(architecture, ARCHITECTURES[architecture][0], attention)
    both(model, random_images(model, len(MIXED)), MIXED)


@pytest.mark.parametrize(("attention", "asked"), [("full_context", 6), ("kept_only", 0)])
def test_attention_of_all_tokens_may_stand_for_that_of_kept_ones_where_all_are_context(
    attention: Attention, asked: int
) -> None:
    model = random_vit(attention=attention, gated_layers=tuple(range(6)))
    images, calls = random_images(model, len(MIXED)), []

    def attend(attn: nn.Module, normed: torch.Tensor) -> torch.Tensor:
        calls.append(attn)
        return self_attention(attn, normed, normed.shape[1])

    with torch.inference_mode():
        expected, found = model(images, MIXED, "sparse"), model(images, MIXED, "sparse", attend=attend)
    assert torch.equal(found.kept, expected.kept)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert calls == [block.attn for block in model.vit.blocks[:asked]]


@pytest.mark.parametrize("skips", ["layer", "mlp"])
@pytest.mark.parametrize("architecture", ["test_vit", "vit_small_patch14_reg4_dinov2"])
def test_sparse_equals_masked_whatever_the_gate_sees_and_idle_patches_bypass(architecture: str, skips: Skips) -> None:
    layers = tuple(range(0, 6))
    model = random_vit(architecture, ARCHITECTURES[architecture][0], gated_layers=layers, gate="context", skips=skips)
    both(model, random_images(model, len(MIXED)), MIXED)


@pytest.mark.parametrize(
    ("attention", "skips"), [("full_context", "layer"), ("kept_only", "layer"), ("full_context", "mlp")]
)
def test_idle_patches_get_the_bypass_in_both_paths_and_computed_ones_do_not(attention: Attention, skips: Skips) -> None:
    model = random_vit(attention=attention, skips=skips, gate="context", bypass_rank=3)
    images = random_images(model, len(MIXED))
    both(model, images, MIXED)
    plain = random_vit(attention=attention, skips=skips, gate="context")
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.inference_mode():
        for threshold, same in ((0.0, True), (0.5, False)):
            one, other = (each(images, torch.full((len(images),), threshold)).logits for each in (model, plain))
            assert torch.allclose(one, other, atol=1e-4) == same


def test_all_attend_where_the_mlp_alone_is_bypassed() -> None:
    with pytest.raises(ValueError, match="full_context"):
        random_vit(attention="kept_only", skips="mlp")
    with pytest.raises(ValueError, match="full_context"):
        random_vit(attention="kept_only", full_layers=2, mlp_layers=3)


def test_the_first_layers_may_attend_to_all_and_skip_the_mlp_alone() -> None:
    late = random_vit(attention="kept_only", full_layers=3, mlp_layers=2)
    images = random_images(late, len(MIXED))
    both(late, images, MIXED)
    for alike, own in (
        (random_vit(attention="kept_only"), {"attention": "kept_only"}),
        (random_vit(), {"attention": "kept_only", "full_layers": 6}),
        (random_vit(skips="mlp"), {"mlp_layers": 6}),
    ):
        of_layers = random_vit(**own)
        with torch.inference_mode():
            one, other, third = (model(images, MIXED, "sparse").logits for model in (alike, of_layers, late))
        assert torch.equal(one, other)
        assert not torch.allclose(one[1:-1], third[1:-1], atol=1e-3)


def test_a_fresh_bypass_changes_nothing_and_learns_by_its_second_matrix_first() -> None:
    torch.manual_seed(0)
    bypass, normed = Bypass(8, 2), torch.randn(3, 5, 8)
    assert not bypass(normed).any()
    bypass(normed).sum().backward()
    assert bypass.up.weight.grad is not None
    assert bypass.up.weight.grad.abs().sum() > 0


def test_bypassing_the_mlp_alone_is_something_else_than_bypassing_the_layer() -> None:
    one, other = (random_vit(gate="context", skips=skips) for skips in ("layer", "mlp"))
    images = random_images(one, 4)
    with torch.inference_mode():
        for threshold, same in ((0.0, True), (0.5, False)):
            layer, mlp = (model(images, torch.full((4,), threshold)).logits for model in (one, other))
            assert torch.allclose(layer, mlp, atol=1e-4) == same


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_sparse_equals_masked_at_one_threshold(threshold: float, attention: Attention) -> None:
    model = random_vit(attention=attention, gated_layers=(1, 2, 4))
    both(model, random_images(model, 5), torch.full((5,), threshold))


def test_counts_are_ragged_so_the_equalities_above_mean_something() -> None:
    model = random_vit()
    with torch.inference_mode():
        kept = model(random_images(model, 6), torch.full((6,), 0.5)).kept
    counts = kept.sum(-1)  # (B, L)
    assert len(counts.unique()) > 8
    assert 0.05 < kept.float().mean() < 0.95


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_paths_would_differ_if_skipping_did_nothing(attention: Attention) -> None:
    model = random_vit(attention=attention)
    images = random_images(model, 4)
    with torch.inference_mode():
        dense, pruned = model(images, torch.zeros(4)), model(images, torch.full((4,), 0.5))
    assert (dense.logits - pruned.logits).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_threshold_zero_is_plain_timm(architecture: str, execution: str) -> None:
    model = random_vit(architecture, ARCHITECTURES[architecture][0])
    images = random_images(model, 3)
    with torch.inference_mode():
        out = model(images, torch.zeros(3), execution)
        torch.testing.assert_close(out.logits, model.vit(images), atol=1e-4, rtol=0)
    assert out.kept.all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_a_last_layer_without_a_gate_is_plain_timm_though_nobody_reads_its_patches(
    architecture: str, execution: Execution
) -> None:
    model = random_vit(architecture, ARCHITECTURES[architecture][0], gated_layers=(1,))
    images = random_images(model, 3)
    widths: list[int] = []
    model.vit.norm.register_forward_hook(lambda module, args, out: widths.append(args[0].shape[1]))
    with torch.inference_mode():
        out = model(images, torch.zeros(3), execution)
        torch.testing.assert_close(out.logits, model.vit(images), atol=1e-4, rtol=0)
    prefix = model.vit.num_prefix_tokens
    assert widths == [prefix + model.patches * (architecture == "test_vit2"), prefix + model.patches]
    assert out.kept.shape == (3, len(model.vit.blocks), model.patches)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_for_any_size_is_the_models_for_each(architecture: str) -> None:
    own = ARCHITECTURES[architecture][0]
    fixed = random_vit(architecture, own, gated_layers=(0, 2, 4), gate="context")
    flexible = build(fixed.config, any_size=True).eval()
    flexible.load_state_dict(fixed.state_dict())
    patch = fixed.vit.patch_embed.patch_size[0]
    for size_px in (own, own - patch):
        model = checkpoint.at_size(fixed, size_px)
        images = random_images(model, 3)
        threshold = torch.tensor([0.0, 0.5, 0.6])
        for execution in EXECUTIONS:
            with torch.inference_mode():
                one, other = model(images, threshold, execution), flexible(images, threshold, execution)
            torch.testing.assert_close(one.logits, other.logits, atol=1e-4, rtol=0)
            assert torch.equal(one.kept, other.kept)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_image_is_answered_the_same_alone_and_in_any_batch_order_and_company(attention: Attention) -> None:
    model = random_vit(attention=attention)
    images = random_images(model, len(MIXED))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.inference_mode():
        together = model(images, MIXED, "sparse")
        shuffled = model(images[order], MIXED[order], "sparse")
        for i in range(len(images)):
            alone = model(images[i : i + 1], MIXED[i : i + 1], "sparse")
            for other, row in ((together, i), (shuffled, int((order == i).nonzero()))):
                assert torch.equal(alone.kept[0], other.kept[row])
                torch.testing.assert_close(alone.logits[0], other.logits[row], atol=1e-4, rtol=0)


def test_a_higher_threshold_never_keeps_more_in_the_first_gated_layer() -> None:
    model = random_vit(gated_layers=(2, 4))
    images, thresholds = random_images(model, 1), torch.linspace(0, 1, 21)
    with torch.inference_mode():
        kept = model(images.expand(21, -1, -1, -1), thresholds).kept[:, 2]
    assert (kept[1:] <= kept[:-1]).all()


def test_layers_without_a_gate_keep_everything_and_score_one() -> None:
    model = random_vit(gated_layers=(3,))
    with torch.inference_mode():
        out = model(random_images(model, 2), torch.ones(2))
    ungated = [0, 1, 2, 4, 5]
    assert out.kept[:, ungated].all()
    assert (out.scores[:, ungated] == 1).all()
    assert not out.kept[:, 3].any()


def test_a_model_that_cant_be_pruned_is_refused_by_name() -> None:
    resnet = timm.create_model("resnet18")
    with pytest.raises(UnsupportedModel, match="resnet18 is a ResNet"):
        check_supported(resnet, "resnet18")
    with pytest.raises(UnsupportedModel, match="only timm.s VisionTransformer family|can.t build"):
        build(PrunedViTConfig("vit_relpos_small_patch16_224", 64, LABELS))
    with pytest.raises(UnsupportedModel, match="no_such_vit"):
        build(PrunedViTConfig("no_such_vit", 64, LABELS))


@pytest.mark.parametrize("name", ["hf-hub:timm/vit_tiny_patch16_224", "local-dir:nowhere", "local-dir:/", "a:b", ":"])
def test_a_name_that_is_a_place_is_refused_and_not_looked_up(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="names a place: name a model of timm's own") as caught:
        build(PrunedViTConfig(name, 64, LABELS))
    assert repr(name) in str(caught.value)


def test_what_timm_asserts_is_said_in_a_line() -> None:
    with pytest.raises(UnsupportedModel, match="can't build 'vit_tiny_r_s16_p8_224' at 100 px: AssertionError"):
        build(PrunedViTConfig("vit_tiny_r_s16_p8_224", 100, LABELS))


def test_a_convolutional_stem_is_refused_by_name() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    for options in ({"embed_dim": 64}, {"embed_dim": 16, "proj": False}):
        vit = random_vit("test_vit", 64).vit
        vit.patch_embed = HybridEmbed(stem, img_size=64, **options)
        with pytest.raises(UnsupportedModel, match="a toy: its patches come of a HybridEmbed, not of one product"):
            check_supported(vit, "a toy")
    with pytest.raises(UnsupportedModel, match="vit_tiny_r_s16_p8_224: its patches come of a HybridEmbed"):
        build(PrunedViTConfig("vit_tiny_r_s16_p8_224", 64, LABELS))


def test_a_gate_in_a_layer_that_isnt_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers 0 to 5"):
        build(PrunedViTConfig("test_vit", 64, LABELS, gated_layers=(6,)))
