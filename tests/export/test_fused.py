"""What stands for layers in the served graphs says what they say, and only there are ONNX Runtime's own operators."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import nn

from export.bundle import ANY_SIZE, ANY_SIZE_DENSE
from export.fused import PixelEmbed, attend, embeds_pixels, with_pixel_embed
from export.graph import ServedViT, example_inputs
from models import checkpoint
from models.preprocessing import normalise
from models.pruned_vit import self_attention
from tests.models.builders import random_vit


def operators(file: Path) -> list[str]:
    model = onnx.load(file, load_external_data=False)
    return [f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain]


@pytest.mark.parametrize("architecture", ["test_vit", "vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_224"])
def test_pixels_are_embedded_as_their_normalised_image(architecture: str) -> None:
    size_px = 64 if "14" not in architecture else 56
    model = random_vit(architecture, size_px, gated_layers=(1,))
    images, threshold = example_inputs(model)
    fused = with_pixel_embed(model)
    assert embeds_pixels(fused)
    assert not embeds_pixels(model)
    with torch.inference_mode():
        expected = model.embed(normalise(images, model.config.mean, model.config.std))
        torch.testing.assert_close(fused.embed(images), expected, atol=2e-5, rtol=1e-5)
        one, other = (ServedViT(model, "sparse", fused=each)(images, threshold) for each in (True, False))
    torch.testing.assert_close(one[0], other[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(one[1], other[1])


def test_an_embedding_that_isnt_timms_plain_one_stays() -> None:
    model = random_vit("test_vit", 64, gated_layers=(1,))
    model.vit.patch_embed.flatten = False
    fused = with_pixel_embed(model)
    assert not isinstance(fused.vit.patch_embed, PixelEmbed)
    assert fused.vit.patch_embed is not model.vit.patch_embed  # the export changes its own alone


@pytest.mark.parametrize(
    ("options", "fuses"),
    [
        ({"qkv_bias": True}, True),
        ({"qkv_bias": False}, False),
        ({"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm}, False),
        ({"qkv_bias": True, "attn_head_dim": 8}, False),
    ],
)
def test_attention_is_one_operator_where_the_runtime_has_it(options: dict[str, object], fuses: bool) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Attention(64, 4, **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return attend(self.attn, x)

    module, x = Module().eval(), torch.randn(2, 5, 64)
    with torch.inference_mode():
        assert torch.equal(module(x), self_attention(module.attn, x, 5))
    program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    assert ("Attention" in [node.op_type for node in program.model_proto.graph.node]) == fuses


def test_only_graphs_of_the_service_have_operators_of_its_runtime(tiny_bundle: Path) -> None:
    layers = checkpoint.load(tiny_bundle).layers
    for name in (ANY_SIZE, ANY_SIZE_DENSE):  # where patches idle as where none does
        assert operators(tiny_bundle / name) == ["com.microsoft.Attention"] * (layers - 1)
    for name in ("model.onnx", "model-32.onnx", "masked.onnx", "anysize.float16.onnx", "anysize-dense.float16.onnx"):
        assert not operators(tiny_bundle / name)
