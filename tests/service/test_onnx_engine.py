"""The graphs in ONNX Runtime, on every provider that this machine's runtime has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service import execution
from service.artifact import Bundle, load_bundle
from service.engine import EngineOutput
from service.errors import BundleError, InferenceFailed, SettingsError
from service.execution import CPU, CUDA, TENSORRT, Provider, available_providers
from service.onnx_engine import OnnxEngine, bucketed, run_bound


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


FOUND = available_providers()
PROVIDERS: list[Provider] = ["cpu", *(["cuda"] if CUDA in FOUND else [])]  # type: ignore[list-item]
HALF_PROVIDERS: list[Provider] = [*PROVIDERS, *(["tensorrt"] if TENSORRT in FOUND else [])]  # type: ignore[list-item]


@pytest.fixture(scope="module", params=PROVIDERS)
def onnx(bundle: Bundle, request: pytest.FixtureRequest) -> OnnxEngine:
    return OnnxEngine(bundle, threads=1, provider=request.param)


@pytest.fixture(scope="module", params=HALF_PROVIDERS)
def half(bundle: Bundle, request: pytest.FixtureRequest) -> OnnxEngine:
    return OnnxEngine(bundle, threads=1, precision="float16", provider=request.param)


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


def test_rows_at_threshold_0_meet_no_gate_whatever_the_others_do(
    bundle: Bundle, onnx: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, threshold = noise(4, bundle.manifest.full.size_px), np.array([0, 0.5, 0, 0.25], np.float32)
    alone = [onnx.infer(images[row : row + 1], threshold[row : row + 1]) for row in range(4)]
    run, ran = onnx._run, []

    def spy(session: ort.InferenceSession, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        ran.append((session, threshold.tolist()))
        return run(session, images, threshold)

    monkeypatch.setattr(onnx, "_run", spy)
    together = onnx.infer(images, threshold)
    assert ran == [(onnx._gated, [0.5, 0.25]), (onnx._dense, [0.0, 0.0])]
    np.testing.assert_allclose(together.logits, np.concatenate([one.logits for one in alone]), atol=1e-4)
    assert np.array_equal(together.kept, np.concatenate([one.kept for one in alone]))
    assert together.kept[[0, 2]].all()


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


def test_float16_is_near_and_its_rows_are_their_own(bundle: Bundle, onnx: OnnxEngine, half: OnnxEngine) -> None:
    for graph in bundle.manifest.graphs:
        images, threshold = noise(6, graph.size_px), np.array([0, 0, 0.3, 0.5, 0.7, 1], np.float32)
        exact, near = onnx.infer(images, threshold), half.infer(images, threshold)
        assert near.logits.dtype == np.float32
        assert (exact.kept == near.kept).mean() > 0.97
        same = (exact.kept == near.kept).all((1, 2))
        assert same[:2].all()
        difference = np.abs(exact.logits - near.logits)[same].max()
        assert 0 < difference < 0.05
        alone = half.infer(images[3:4], threshold[3:4])
        assert np.array_equal(alone.kept[0], near.kept[3])


@pytest.mark.parametrize("threads", [2, 4])
def test_two_runs_at_once_give_what_one_gives(bundle: Bundle, threads: int) -> None:
    engine = OnnxEngine(bundle, threads=threads, provider="cpu", runs=2)
    assert engine.beside is not None
    assert engine.beside.beside is None
    images, threshold = noise(6, bundle.manifest.full.size_px), np.array([0, 0.3, 0.5, 0, 0.7, 1], np.float32)
    expected = engine.infer(images, threshold)

    def often(each: OnnxEngine) -> list[EngineOutput]:
        return [each.infer(images, threshold) for _ in range(20)]

    with ThreadPoolExecutor(2) as threads_of_both:
        for found in sum(threads_of_both.map(often, (engine, engine.beside)), []):
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
            assert np.array_equal(found.kept, expected.kept)


def test_one_thread_makes_one_run_at_once(bundle: Bundle) -> None:
    assert OnnxEngine(bundle, threads=1, provider="cpu", runs=2).beside is None
    assert OnnxEngine(bundle, threads=2, provider="cpu", runs=1).beside is None


def test_a_runtime_built_for_gpus_serves_on_the_cpu_where_no_gpu_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(execution, "_finds_gpu", lambda: False)
    engine = OnnxEngine(bundle, threads=1, precision="auto", provider="auto")
    assert not engine.execution.on_gpu
    size_px = bundle.manifest.full.size_px
    assert np.isfinite(engine.infer(noise(1, size_px), np.array([0.5], np.float32)).logits).all()
    with pytest.raises(SettingsError, match="SKIPVIT_PROVIDER=cuda"):
        OnnxEngine(bundle, threads=1, provider="cuda")


@pytest.mark.parametrize(("rows", "most", "filled"), [(1, 32, 1), (3, 32, 4), (5, 6, 6), (8, 8, 8), (9, 8, 9)])
def test_a_batch_for_a_gpu_is_filled_up_with_rows_that_change_no_other(
    bundle: Bundle, onnx: OnnxEngine, rows: int, most: int, filled: int
) -> None:
    images = noise(rows, bundle.manifest.full.size_px)
    threshold = np.linspace(0.2, 0.8, rows, dtype=np.float32)
    feed = bucketed({"images": images, "threshold": threshold}, most)
    assert {name: len(values) for name, values in feed.items()} == {"images": filled, "threshold": filled}
    assert feed["images"].dtype == np.uint8
    assert feed["threshold"].dtype == np.float32
    assert np.array_equal(feed["images"][:rows], images)
    together, alone = onnx.infer(feed["images"], feed["threshold"]), onnx.infer(images, threshold)
    np.testing.assert_allclose(together.logits[:rows], alone.logits, atol=1e-4)
    assert np.array_equal(together.kept[:rows], alone.kept)
    assert not together.kept[rows:, list(bundle.manifest.gated_layers)].any()


def test_bound_to_a_devices_memory_a_run_gives_the_same(bundle: Bundle) -> None:
    graph = bundle.manifest.full
    session = ort.InferenceSession(bundle.path / bundle.manifest.served["float32"], providers=[CPU])
    feed: dict[str, NDArray[Any]] = {
        "images": noise(3, graph.size_px),
        "threshold": np.array([0, 0.4, 0.6], np.float32),
    }
    bound = run_bound(session, feed, "cpu", ort.RunOptions())
    for one, other in zip(bound, session.run(["logits", "kept"], feed), strict=True):
        assert np.array_equal(one, other)


def test_a_size_without_a_graph_is_an_error(onnx: OnnxEngine) -> None:
    with pytest.raises(InferenceFailed, match="takes no images of 13 x 13"):
        onnx.infer(noise(1, 13), np.zeros(1, np.float32))


def test_what_the_runtime_refuses_is_a_typed_error(bundle: Bundle, onnx: OnnxEngine) -> None:
    two = OnnxEngine(bundle, threads=2, provider="cpu", runs=2)
    for engine in (onnx, two, two.beside):
        assert engine is not None
        with pytest.raises(InferenceFailed, match="ONNX Runtime failed"):
            engine.infer(noise(1, bundle.manifest.full.size_px), np.zeros((1, 1), np.float32))


def test_a_bundle_whose_graph_doesnt_load_is_named(bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.manifest.served["float32"]
    (tmp_path / file).write_bytes(b"no graph")
    with pytest.raises(BundleError, match=file):
        OnnxEngine(Bundle(path=tmp_path, manifest=bundle.manifest), threads=1)


def test_an_output_unlike_the_manifest_is_an_error(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"labels": ("one", "two")})
    engine = OnnxEngine(Bundle(path=bundle.path, manifest=manifest), threads=1)
    with pytest.raises(InferenceFailed, match="unlike the manifest"):
        engine.infer(noise(1, manifest.full.size_px), np.zeros(1, np.float32))
