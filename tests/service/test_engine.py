from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.artifact import Bundle, load_bundle
from service.engine import EngineOutput, check_output, warm_up
from service.errors import BundleError, InferenceFailed
from service.onnx_engine import OnnxEngine
from tests.fakes import FakeEngine, fake_manifest


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def onnx(bundle: Bundle) -> OnnxEngine:
    return OnnxEngine(bundle, threads=1, provider="cpu")


def noise(rows: int, size_px: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (rows, size_px, size_px, 3), np.uint8)


def test_every_size_gives_the_contracts_shapes_and_types(bundle: Bundle, onnx: OnnxEngine) -> None:
    manifest = bundle.manifest
    for graph in manifest.graphs:
        logits, kept = onnx.infer(noise(3, graph.size_px), np.array([0, 0.5, 1], np.float32))
        assert logits.shape == (3, len(manifest.labels))
        assert logits.dtype == np.float32
        assert kept.shape == (3, manifest.layers, graph.patches)
        assert kept.dtype == np.bool_


def test_threshold_0_computes_everything_and_ungated_layers_always_do(bundle: Bundle, onnx: OnnxEngine) -> None:
    manifest = bundle.manifest
    _, kept = onnx.infer(noise(2, manifest.full.size_px), np.array([0, 1], np.float32))
    assert kept[0].all()
    ungated = [layer for layer in range(manifest.layers) if layer not in manifest.gated_layers]
    assert kept[:, ungated].all()


@settings(deadline=None, max_examples=20)
@given(thresholds=st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_a_row_is_the_same_alone_and_in_any_batch(
    bundle: Bundle, onnx: OnnxEngine, thresholds: list[float], seed: int
) -> None:
    images = noise(len(thresholds), bundle.manifest.full.size_px, seed)
    threshold = np.array(thresholds, np.float32)
    together = onnx.infer(images, threshold)
    for row in range(len(images)):
        alone = onnx.infer(images[row : row + 1], threshold[row : row + 1])
        assert np.array_equal(alone.kept[0], together.kept[row])
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-4)


def test_a_size_without_a_graph_is_an_error(onnx: OnnxEngine) -> None:
    with pytest.raises(InferenceFailed, match="13 x 13"):
        onnx.infer(noise(1, 13), np.zeros(1, np.float32))


def test_what_the_runtime_refuses_is_a_typed_error(bundle: Bundle, onnx: OnnxEngine) -> None:
    with pytest.raises(InferenceFailed, match="ONNX Runtime failed"):
        onnx.infer(noise(1, bundle.manifest.full.size_px), np.zeros((1, 1), np.float32))


def test_a_bundle_whose_graph_doesnt_load_is_named(bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.manifest.full.file
    (tmp_path / file).write_bytes(b"no graph")
    with pytest.raises(BundleError, match=file):
        OnnxEngine(Bundle(path=tmp_path, manifest=bundle.manifest), threads=1)


def test_an_output_unlike_the_manifest_is_an_error(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"labels": ("one", "two")})
    engine = OnnxEngine(Bundle(path=bundle.path, manifest=manifest), threads=1)
    with pytest.raises(InferenceFailed, match="unlike the manifest"):
        engine.infer(noise(1, manifest.full.size_px), np.zeros(1, np.float32))


def test_warming_up_runs_the_largest_batch_of_the_largest_size_first_then_every_size() -> None:
    engine = FakeEngine()
    warm_up(engine, fake_manifest().sizes_px, max_batch_size=5)
    assert [len(batch) for batch in engine.batches] == [5, 5, 1, 1, 1, 1]
    assert engine.sizes == [28, 28, 28, 28, 14, 14]


@pytest.mark.parametrize(
    ("logits", "kept"), [((2, 4), (3, 2, 4)), ((3, 4), (2, 2, 4)), ((3,), (3, 2, 4)), ((3, 4), (3, 2))]
)
def test_wrong_shapes_are_found(logits: tuple[int, ...], kept: tuple[int, ...]) -> None:
    with pytest.raises(InferenceFailed):
        check_output(EngineOutput(np.zeros(logits, np.float32), np.ones(kept, np.bool_)), rows=3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_found(value: float) -> None:
    with pytest.raises(InferenceFailed, match="finite"):
        check_output(EngineOutput(np.full((1, 4), value, np.float32), np.ones((1, 2, 4), np.bool_)), rows=1)
