"""The bundled model, as it is committed: small enough, verified, right on real images, the same in any batch."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from export.graph import ServedViT
from models import checkpoint
from models.frontier import frontier
from models.macs import shape_of, used_macs
from service import macs as served_macs
from service.artifact import Bundle, Precision, load_bundle
from service.budget import Choice, expected, timed
from service.errors import InferenceFailed
from service.onnx_engine import OnnxEngine
from service.preprocess import resize_crop

ZOO = Path(__file__).parent.parent / "models" / "zoo"
SAMPLES = sorted((ZOO / "cifar100-vits14" / "samples" / "test").glob("*/*.png"))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ZOO / "cifar100-vits14")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> OnnxEngine:
    return OnnxEngine(bundle, threads=2, runs=2)


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> NDArray[np.uint8]:
    return samples(bundle.manifest.full.size_px)


def samples(size_px: int) -> NDArray[np.uint8]:
    """The sample images (n, size_px, size_px, 3)."""
    return np.stack([resize_crop(Image.open(file).convert("RGB"), size_px) for file in SAMPLES])


def test_what_is_committed_is_small(bundle: Bundle) -> None:
    made = {".pt"}  # by whoever serves from TorchScript; git leaves it alone
    files = [file for file in bundle.path.iterdir() if file.is_file() and file.suffix not in made]
    sizes = {file.name: file.stat().st_size for file in files}
    assert sizes.pop("weights.safetensors") <= 50_000_000
    assert sum(sizes.values()) < 4_500_000


def test_it_knows_the_sample_images(bundle: Bundle, engine: OnnxEngine, images: NDArray[np.uint8]) -> None:
    logits = engine.infer(images, np.zeros(len(images), np.float32)).logits
    right = [bundle.manifest.labels[i] == file.parent.name for i, file in zip(logits.argmax(1), SAMPLES, strict=True)]
    assert np.mean(right) >= 0.7  # 83 % of all test images; these are 33 of them


def test_int8_costs_what_the_manifest_says(bundle: Bundle, engine: OnnxEngine) -> None:
    points = {(point.size_px, point.threshold, point.sure): point for point in bundle.manifest.int8}
    assert {(one.size_px, one.threshold, one.sure) for one in bundle.manifest.presets.values()} <= set(points)
    for point in points.values():
        assert point.top1 >= point.float32_top1 - 0.01
        smaller_and_skipping = point.threshold > 0 and point.size_px < bundle.manifest.full.size_px
        assert point.same_top1 >= (0.95 if smaller_and_skipping else 0.96)
    int8 = OnnxEngine(bundle, threads=2, precision="int8")
    for size_px in bundle.manifest.sizes_px:
        images = samples(size_px)
        zeros = np.zeros(len(images), np.float32)
        one, other = (each.infer(images, zeros).logits.argmax(1) for each in (engine, int8))
        assert (one == other).mean() >= 0.9


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_loaded_engine_holds_its_weights_and_little_else(bundle: Bundle, precision: str) -> None:
    """Both graphs' weights are 45 MB in int8 and 180 in float32; what loading needed beside them has gone back."""
    code = f"""
import os
from pathlib import Path
from service.artifact import load_bundle
from service.onnx_engine import OnnxEngine
def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
bundle = load_bundle(Path({str(bundle.path)!r}))
before_mb = resident_mb()
engine = OnnxEngine(bundle, threads=2, precision={precision!r})
print(resident_mb() - before_mb)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < {"int8": 130, "float32": 300}[precision]


def test_int8_rows_are_the_same_in_any_company(bundle: Bundle, images: NDArray[np.uint8]) -> None:
    engine = OnnxEngine(bundle, threads=2, precision="int8")
    threshold = np.resize(np.array([0.0, 0.2, 0.4, 0.6, 1.0], np.float32), len(images))
    together = engine.infer(images, threshold)
    for row in range(0, len(images), 3):
        alone = engine.infer(images[row : row + 1], threshold[row : row + 1])
        assert np.array_equal(alone.kept[0], together.kept[row])
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-4)


def test_the_graphs_are_the_trained_model_at_every_size_and_threshold(bundle: Bundle, engine: OnnxEngine) -> None:
    trained = checkpoint.load(bundle.path)
    for graph in bundle.manifest.graphs:
        model, images = checkpoint.at_size(trained, graph.size_px), samples(graph.size_px)
        threshold = np.resize(np.array([0.0, 0.3, 0.5, 0.7, 0.9, 1.0], np.float32), len(images))
        with torch.inference_mode():
            logits, kept = ServedViT(model, "masked")(torch.from_numpy(images), torch.from_numpy(threshold))
        out = engine.infer(images, threshold)
        same = (out.kept == kept.numpy()).all(axis=(1, 2))
        assert same.mean() >= 0.96  # one row may flip one patch by rounding
        assert np.abs(out.logits - logits.numpy())[same].max() < 1e-3
        for gated in (True, False):
            used = served_macs.used_macs(graph, out.kept.sum(-1), gated)
            assert used.tolist() == used_macs(shape_of(model), torch.from_numpy(out.kept), gated).tolist()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_in_any_batch_order_and_company(
    data: st.DataObject, engine: OnnxEngine, images: NDArray[np.uint8]
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(images) - 1), min_size=2, max_size=9))
    levels = [round(level * 0.05, 2) for level in range(21)]
    thresholds = data.draw(st.lists(st.sampled_from(levels), min_size=len(rows), max_size=len(rows)))
    threshold = np.array(thresholds, np.float32)
    together = engine.infer(images[rows], threshold)
    position = data.draw(st.integers(0, len(rows) - 1))
    alone = engine.infer(images[rows[position]][None], threshold[position : position + 1])
    assert (alone.kept[0] == together.kept[position]).all()
    assert alone.logits[0].argmax() == together.logits[position].argmax()
    np.testing.assert_allclose(alone.logits[0], together.logits[position], atol=1e-3)


def test_a_higher_threshold_skips_more_and_costs_less(
    bundle: Bundle, engine: OnnxEngine, images: NDArray[np.uint8]
) -> None:
    costs, first = [], []
    for threshold in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
        kept = engine.infer(images[:8], np.full(8, threshold, np.float32)).kept
        costs.append(served_macs.used_macs(bundle.manifest.full, kept.sum(-1), threshold > 0).mean())
        first.append(kept[:, bundle.manifest.gated_layers[0]])
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.5 * costs[0]
    assert all((later <= earlier).all() for earlier, later in zip(first, first[1:], strict=False))


def test_the_card_says_what_was_measured(bundle: Bundle) -> None:
    card, manifest = (bundle.path / "README.md").read_text(), bundle.manifest
    evaluation = json.loads((bundle.path / "evaluation.json").read_text())
    assert evaluation["images"] >= 5_000
    full = [row for row in evaluation["rows"] if row["size_px"] == manifest.full.size_px]
    assert manifest.evaluation.top1 == next(row["top1"] for row in full if row["threshold"] == 0)
    for row in (*full, *frontier(evaluation["rows"])):
        line = f"| {row['size_px']} px | {row['threshold']:g} | {row['skipped_patches']:.1f} of "
        line += f"{manifest.graph(row['size_px']).patches} | {100 * (1 - row['macs_ratio']):.1f} % "
        assert line + f"| {100 * row['top1']:.2f} % |" in card
    parity = json.loads((bundle.path / "parity.json").read_text())
    assert all(figures["holds"] for figures in parity.values())


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_what_lower_precision_costs_was_measured_of_these_graphs(bundle: Bundle, precision: str) -> None:
    measured = json.loads((bundle.path / f"{precision}-evaluation.json").read_text())
    assert measured["version"] == bundle.manifest.version
    assert {row["size_px"] for row in measured["rows"]} == set(bundle.manifest.sizes_px)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_packing_takes_is_what_was_measured(bundle: Bundle, precision: Precision) -> None:
    """Mean over thresholds and batches of 8 and 32, of the CPU where it is most; with one image it is more."""
    benchmark = json.loads((bundle.path / "benchmark-xeon.json").read_text())
    rows = [row for row in benchmark["rows"] if row["rival"] == f"skipvit {precision}" and not row["sure"]]
    full = {row["batch_size"]: row for row in rows if (row["size_px"], row["threshold"]) == (112, 0)}
    beside = [
        full[row["batch_size"]]["speedup"] / row["speedup"] - row["macs_ratio"] / full[row["batch_size"]]["macs_ratio"]
        for row in rows
        if row["size_px"] == 112 and row["threshold"] > 0 and row["batch_size"] > 1
    ]
    assert bundle.manifest.packing[precision] == pytest.approx(np.mean(beside), abs=0.01)


def test_presets_spend_less_and_less_and_are_worth_it(bundle: Bundle) -> None:
    presets = [bundle.manifest.presets[name] for name in ("full", "balanced", "economy")]
    full_px = bundle.manifest.full.size_px
    choices = [Choice(one.size_px, one.threshold, one.sure) for one in presets]
    full, balanced, economy = (expected(bundle.manifest, choice) for choice in choices)
    assert full.time_ratio > balanced.time_ratio > economy.time_ratio
    gated = [expected(timed(bundle.manifest, name), Choice(full_px, 0.25)).time_ratio for name in ("float32", "int8")]
    assert 0.8 < gated[0] < gated[1] < 1  # of MACs a fifth less; in int8, where products are quick, gates weigh more
    assert balanced.accuracy >= full.accuracy - 0.0051
    assert economy.accuracy >= full.accuracy - 0.0151
    evaluation = json.loads((bundle.path / "evaluation.json").read_text())  # images that nothing was chosen on
    scored = {(row["size_px"], row["threshold"], 0.0): row["top1"] for row in evaluation["rows"]}
    looks = [row for row in evaluation["second_looks"] if (row["again_px"], row["threshold"]) == (full_px, 0)]
    scored |= {(row["size_px"], 0.0, row["sure"]): row["top1"] for row in looks}
    test = [scored[one.size_px, one.threshold, one.sure] for one in presets]
    assert test[1] >= test[0] - 0.005
    assert test[2] >= test[0] - 0.015


@pytest.mark.parametrize("which", ["the engine", "the one beside it"])
def test_a_run_can_be_ended_and_the_next_one_is_none_the_worse(
    which: str, engine: OnnxEngine, images: NDArray[np.uint8]
) -> None:
    if which != "the engine":
        assert engine.beside is not None
        engine = engine.beside
    expected = engine.infer(images, np.zeros(len(images), np.float32)).logits
    many = np.concatenate([images] * 8)  # seconds of work, so that the run can't be over before it is ended
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(engine.infer, many, np.zeros(len(many), np.float32))
        while not running.running():
            pass
        while not running.done():
            engine.terminate()
            wait([running], timeout=0.05)
        assert isinstance(running.exception(), InferenceFailed)
    np.testing.assert_array_equal(engine.infer(images, np.zeros(len(images), np.float32)).logits, expected)
