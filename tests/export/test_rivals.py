"""The rivals: who computes the same gives the same logits, at the cost that is claimed for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from export.gemm import PRODUCTS, LayerProducts, gemm_gflops, layer_products
from export.graph import DenseViT, MergedViT, example_inputs
from export.quantise import Range, products
from export.rivals import (
    COMPILED,
    DENSE,
    DENSE_INT8,
    EXPORTED,
    MERGING,
    OPENVINO,
    TIMM,
    Rival,
    all_rivals,
    dense_ranges,
    merges_of,
    openvino_dense,
    ours,
    session,
    timm_compiled,
    write_dense,
)
from export.to_onnx import ExportError
from models import checkpoint
from models.checkpoint import at_size
from models.preprocessing import normalise
from service.artifact import Bundle, load_bundle
from service.budget import Choice
from service.macs import used_macs
from service.onnx_engine import OnnxEngine
from service.results import softmax

OURS = [Choice(64, 0.0), Choice(64, 0.5), Choice(32, 0.0, 0.5)]


@pytest.fixture(scope="module")
def rivals(int8_bundle: Bundle) -> list[Rival]:
    """Everybody, at one point of ours in each precision."""
    return all_rivals(int8_bundle, {"float32": OURS, "int8": [Choice(32, 0.5)]}, 1)


def pixels(bundle: Bundle, size_px: int, count: int = 3) -> Tensor:
    return example_inputs(at_size(checkpoint.load(bundle.path), size_px), count)[0]


def test_everybody_is_there_once_dense_first(rivals: list[Rival]) -> None:
    keys = [(rival.kind, rival.name, rival.size_px, rival.threshold) for rival in rivals]
    assert len(set(keys)) == len(keys)
    assert keys[0] == (DENSE, "ONNX Runtime, dense", 64, 0.0)
    found = {(kind, size_px) for kind, _, size_px, _ in keys if kind != OPENVINO}
    dense = {(kind, size_px) for kind in (DENSE, DENSE_INT8) for size_px in (64, 32)}
    own = {("float32", 64), ("float32", 32), ("int8", 32)}
    assert found == dense | own | {(MERGING, 64), (EXPORTED, 64), (TIMM, 64), (COMPILED, 64)}


@pytest.mark.parametrize("count", [3, 1])
def test_exact_rivals_answer_as_timm_does(count: int, rivals: list[Rival], int8_bundle: Bundle) -> None:
    model = checkpoint.load(int8_bundle.path)
    for rival in rivals:
        if not rival.exact or rival.threshold:
            continue
        images, own = pixels(int8_bundle, rival.size_px, count), at_size(model, rival.size_px)
        with torch.inference_mode():
            expected = own.vit(normalise(images, model.config.mean, model.config.std)).numpy()
        np.testing.assert_allclose(rival.run(images.numpy()).logits, expected, atol=1e-4, err_msg=rival.name)


def test_int8_is_near_but_not_the_same(rivals: list[Rival], int8_bundle: Bundle) -> None:
    dense = {rival.size_px: rival for rival in rivals if rival.kind == DENSE}
    for rival in rivals:
        if rival.kind == DENSE_INT8:
            images = pixels(int8_bundle, rival.size_px, 8).numpy()
            one, other = (each.run(images).logits for each in (rival, dense[rival.size_px]))
            assert 0 < np.abs(one - other).max() < 0.2 * np.abs(other).max()
            assert not rival.exact


def test_token_merging_answers_as_torch_does_and_costs_less_the_more_it_merges(
    rivals: list[Rival], int8_bundle: Bundle
) -> None:
    model, images = checkpoint.load(int8_bundle.path), pixels(int8_bundle, 64, 5)
    merging = [rival for rival in rivals if rival.kind == MERGING]
    assert [rival.name for rival in merging] == [f"ONNX Runtime, token merging r={merged}" for merged in (1, 2)]
    cost = [float(int8_bundle.manifest.full.dense_macs)]
    for rival, merged in zip(merging, (1, 2), strict=True):
        answer = rival.run(images.numpy())
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            expected = MergedViT(model, merged)(images)
        np.testing.assert_allclose(answer.logits, expected.numpy(), atol=1e-4)
        assert rival.macs(answer) == counter.get_total_flops() / 2 / len(images)
        cost.append(rival.macs(answer))
    assert cost == sorted(cost, reverse=True)
    assert merges_of(64) == (2, 3, 5, 6)


def test_macs_are_those_of_the_manifest_and_ours_those_of_what_was_kept(
    rivals: list[Rival], int8_bundle: Bundle
) -> None:
    for rival in rivals:
        answer, graph = rival.run(pixels(int8_bundle, rival.size_px).numpy()), int8_bundle.manifest.graph(rival.size_px)
        if rival.kind in (DENSE, DENSE_INT8, OPENVINO):
            assert rival.macs(answer) == graph.dense_macs
        elif rival.kind in (EXPORTED, TIMM, COMPILED):
            assert rival.macs(answer) == graph.timm_forward_macs
    full, half, _ = (rival for rival in rivals if rival.kind == "float32")
    images = pixels(int8_bundle, 64, 8).numpy()
    assert half.macs(half.run(images)) < full.macs(full.run(images))


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_two_looks_are_the_second_one_where_the_first_isnt_sure(threshold: float, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    small, full = (pixels(bundle, size_px, 24).numpy() for size_px in (32, 64))
    (rival,) = ours(bundle, "float32", [Choice(32, threshold, 0.5)], 1)
    assert (rival.kind, rival.size_px, rival.exact, rival.sure) == ("float32", 32, False, 0.5)
    engine, limits = OnnxEngine(bundle, threads=1), np.full(24, threshold, np.float32)
    (one, kept), (other, kept_again) = (engine.infer(images, limits) for images in (small, full))
    for scale, looks in ((1.0, None), (50.0, 0), (0.0, 24)):  # as it is, all sure, none sure
        first = rival.run(small)._replace(logits=scale * one)
        assert rival.second is not None
        found = rival.second(first, full)
        again = softmax(scale * one).max(1) < 0.5
        np.testing.assert_allclose(found.logits, np.where(again[:, None], other, scale * one), atol=1e-4)
        assert len(found.kept_again) == again.sum()
        assert looks in (None, len(found.kept_again))
        spent = used_macs(bundle.manifest.graph(32), kept.sum(-1), threshold > 0)
        spent += again * used_macs(bundle.manifest.full, kept_again.sum(-1), threshold > 0)
        assert rival.macs(found) == pytest.approx(spent.mean())
    as_asked = rival.answer({32: small, 64: full}, np.arange(24))
    sure = softmax(one).max(1) >= 0.5
    np.testing.assert_allclose(as_asked.logits, np.where(sure[:, None], one, other), atol=1e-4)


def test_the_dense_graph_costs_what_the_manifest_says_and_takes_any_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, model = load_bundle(tiny_bundle), checkpoint.load(tiny_bundle)
    images = example_inputs(model, 5)[0]
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        expected = DenseViT(model)(images)
    assert counter.get_total_flops() // 2 == len(images) * bundle.manifest.full.dense_macs
    made = session(write_dense(bundle, tmp_path), 1)
    for rows in (slice(0, 5), slice(2, 3)):
        (logits,) = made.run(None, {"images": images[rows].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[rows], atol=1e-4, rtol=0)


def test_a_dense_products_range_is_that_of_the_same_product_in_the_served_graph(
    int8_bundle: Bundle, tmp_path: Path
) -> None:
    dense = onnx.load(write_dense(int8_bundle, tmp_path), load_external_data=False)
    keys = [key for product in products(dense) for key in product.keys]
    served = {key: Range(-number, number) for number, key in enumerate(keys, 1)}
    assert dense_ranges(dense, {**served, "of a gate": Range(-1, 1)}) == served
    del served[keys[3]]
    with pytest.raises(ExportError, match=f"{keys[3]}: observe anew"):
        dense_ranges(dense, served)


def test_what_isnt_installed_is_left_out_and_said(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert openvino_dense({64: (tiny_bundle / "model.onnx", 1)}, 1) == []
    assert "left out: OpenVINO: not installed: `pip install openvino` adds it" in capsys.readouterr().err

    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    assert timm_compiled(checkpoint.load(tiny_bundle), 1, no_compiler) == []
    error = capsys.readouterr().err
    assert "left out: torch.compile: " in error
    assert "no C++ compiler" in error


def test_products_of_the_models_shapes_have_a_rate(tiny_bundle: Path) -> None:
    assert 0.1 < gemm_gflops(checkpoint.load(tiny_bundle), 1) < 10_000


def test_products_alone_cost_what_the_layers_multiply_and_run_on_as_many_tokens(tiny_bundle: Path) -> None:
    model = checkpoint.load(tiny_bundle)
    for size_px, rival in zip((64, 32), layer_products(model, (64, 32), 1), strict=True):
        products, images = LayerProducts(at_size(model, size_px)), pixels(load_bundle(tiny_bundle), size_px, 5)
        answer = rival.run(images.numpy())
        tokens = torch.zeros(5, 1 + (size_px // 16) ** 2, model.vit.embed_dim)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            rows = products(tokens)
        assert (rival.kind, rival.size_px, rival.exact) == (PRODUCTS, size_px, False)
        assert answer.logits.shape == rows.shape
        assert rival.macs(answer) == counter.get_total_flops() / 2 / len(images)
        assert rival.macs(answer) < load_bundle(tiny_bundle).manifest.graph(size_px).dense_macs
