"""One graph for all input sizes says what the graph of each size says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.bundle import ANY_SIZE, ANY_SIZE_DENSE, traced_px, write_served
from export.graph import INPUTS, OUTPUTS, AnySizeViT, ServedViT, example_inputs
from export.to_onnx import ExportError, trace
from models import checkpoint
from models.checkpoint import WEIGHTS
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT
from tests.models.builders import random_vit

SIZES = (64, 32)


def run(file: Path, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> list[NDArray[Any]]:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(["logits", "kept"], {"images": images, "threshold": threshold})
    return outputs


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("test_vit", (96, 64, 48)),
        ("test_vit", (64, 96, 48)),  # one size is larger than the model's own
        ("vit_small_patch14_reg4_dinov2", (56, 42)),  # registers, whose rows the position embedding doesn't have
        ("deit3_small_patch16_224", (64, 32)),  # a position embedding without the CLS token
    ],
)
def test_every_size_has_its_own_position_embedding(architecture: str, sizes: tuple[int, ...]) -> None:
    model = random_vit(architecture, sizes[0], gated_layers=(1, 2))
    models = {size_px: checkpoint.at_size(model, size_px) for size_px in sizes}
    any_size = AnySizeViT(models).eval()
    for own in models.values():
        images, threshold = example_inputs(own)
        with torch.inference_mode():
            for one, other in zip(
                any_size(images, threshold), ServedViT(own, "sparse")(images, threshold), strict=True
            ):
                assert torch.equal(one, other)


def test_a_bypass_is_served_as_it_was_trained(tmp_path: Path) -> None:
    model = random_vit("test_vit", 64, gated_layers=(1, 2), gate="context", bypass_rank=3)
    checkpoint.save(model, tmp_path)
    model = checkpoint.load(tmp_path)  # rounded
    write_served({64: model, 32: checkpoint.at_size(model, 32)}, tmp_path / ANY_SIZE)
    images, _ = example_inputs(model, 4)
    threshold = torch.tensor([0.0, 0.4, 0.6, 1.0])
    with torch.inference_mode():
        expected = model(normalise(images, model.config.mean, model.config.std), threshold)
    logits, kept = run(tmp_path / ANY_SIZE, images.numpy(), threshold.numpy())
    assert np.array_equal(kept, expected.kept.numpy())
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "px"), [((96, 64, 48), 48), ((64, 16, 32), 32), ((16, 32), 32), ((16,), 16), ((64,), 64)]
)
def test_a_graph_is_traced_at_the_smallest_size_of_more_than_one_patch(sizes: tuple[int, ...], px: int) -> None:
    model = random_vit("test_vit", sizes[0], gated_layers=(1,))
    assert traced_px({size_px: checkpoint.at_size(model, size_px) for size_px in sizes}) == px


def test_a_size_of_a_single_patch_is_served_beside_others(tmp_path: Path) -> None:
    model = random_vit("test_vit", 32, gated_layers=(0,))
    models = {size_px: checkpoint.at_size(model, size_px) for size_px in (32, 16)}
    for each in models.values():
        each.vit.blocks = each.vit.blocks[:2]  # a trace takes seconds for each
    any_size, names = AnySizeViT(models).eval(), (INPUTS, OUTPUTS)
    graph = trace(any_size, example_inputs(models[traced_px(models)]), names, any_size.side)
    (tmp_path / ANY_SIZE).write_bytes(graph.SerializeToString())
    for own in models.values():
        images, threshold = example_inputs(own)
        logits, kept = run(tmp_path / ANY_SIZE, images.numpy(), threshold.numpy())
        with torch.inference_mode():
            expected = ServedViT(own, "sparse")(images, threshold)
        assert np.array_equal(kept, expected[1].numpy())
        np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-4)


def test_what_torch_cant_export_is_said_in_one_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"^torch can't export the model: [^\n]+$"):
        trace(Branches(), (torch.ones(3, 2),), (("x",), ("y",)))


def test_the_graph_says_what_each_sizes_own_graph_says(tiny_bundle: Path) -> None:
    rng, threshold = np.random.default_rng(0), np.array([0, 0.3, 0.5, 0.7, 1], np.float32)
    for size_px, name in zip(SIZES, ("model.onnx", "model-32.onnx"), strict=True):
        images = rng.integers(0, 256, (5, size_px, size_px, 3), np.uint8)
        (one, kept), (other, same) = (run(tiny_bundle / file, images, threshold) for file in (ANY_SIZE, name))
        assert np.array_equal(kept, same)
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_graph_without_gates_is_the_other_at_threshold_0(tiny_bundle: Path) -> None:
    rng, threshold = np.random.default_rng(0), np.zeros(3, np.float32)
    for size_px in SIZES:
        images = rng.integers(0, 256, (3, size_px, size_px, 3), np.uint8)
        (one, kept), (other, same) = (run(tiny_bundle / file, images, threshold) for file in (ANY_SIZE, ANY_SIZE_DENSE))
        assert np.array_equal(kept, same)
        np.testing.assert_allclose(one, other, atol=1e-4)
    model = onnx.load(tiny_bundle / ANY_SIZE_DENSE, load_external_data=False)
    assert not {"NonZero", "ScatterND", "Sigmoid"} & {node.op_type for node in model.graph.node}


def test_a_size_in_between_that_the_model_was_not_made_for_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(Exception, match="(?i)gather|index|invalid"):
        run(tiny_bundle / ANY_SIZE, np.zeros((1, 48, 48, 3), np.uint8), np.zeros(1, np.float32))


def test_a_model_of_one_size_is_served_by_a_graph_of_that_size(tiny_bundle: Path, tmp_path: Path) -> None:
    model: PrunedViT = checkpoint.load(tiny_bundle)
    shutil.copyfile(tiny_bundle / WEIGHTS, tmp_path / WEIGHTS)
    write_served({64: model}, tmp_path / ANY_SIZE)
    images, threshold = (each.numpy() for each in example_inputs(model))
    for file in (ANY_SIZE, "anysize.float16.onnx"):
        logits, kept = run(tmp_path / file, images, threshold)
        expected = run(tiny_bundle / "model.onnx", images, threshold)
        assert (kept == expected[1]).mean() > 0.98
        np.testing.assert_allclose(logits, expected[0], atol=1e-4 if file == ANY_SIZE else 0.05)
