"""The benchmark's rivals: the plain model with its exact cost, against what the bundle would really answer with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from export import benchmark
from export.graph import DenseViT, example_inputs
from models import checkpoint
from models.preprocessing import normalise
from service.artifact import load_bundle


def test_the_dense_rival_answers_as_timm_does_for_the_dense_macs_of_the_manifest(tiny_bundle: Path) -> None:
    model, full = checkpoint.load(tiny_bundle), load_bundle(tiny_bundle).manifest.full
    images = example_inputs(model)[0]
    with torch.inference_mode():
        expected = model.vit(normalise(images, model.config.mean, model.config.std))
        torch.testing.assert_close(DenseViT(model)(images), expected, atol=1e-4, rtol=0)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            DenseViT(model)(images)
    assert counter.get_total_flops() // 2 == len(images) * full.dense_macs


def test_the_dense_rivals_graph_takes_any_batch(tiny_bundle: Path) -> None:
    model, session = checkpoint.load(tiny_bundle), benchmark.dense_session(load_bundle(tiny_bundle), 1)
    images = example_inputs(model, 5)[0]
    with torch.inference_mode():
        expected = DenseViT(model)(images)
    for rows in (slice(0, 5), slice(2, 3)):
        (logits,) = session.run(None, {"images": images[rows].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[rows], atol=1e-4, rtol=0)


def test_presets_sizes_and_thresholds_are_timed_each_once(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    points = benchmark.points_of(bundle)
    presets = {(preset.size_px, preset.threshold) for preset in bundle.manifest.presets.values()}
    assert len(points) == len(set(points))
    assert set(points) == presets | {(64, 0.0), (32, 0.0)} | {(64, level) for level in benchmark.THRESHOLDS}
    assert points[0] == (64, 0.0)


@pytest.mark.parametrize(("points", "message"), [("96:0", "no input size 96 px"), ("64", "not enough values")])
def test_points_that_cant_be_timed_get_one_line_and_exit_2(
    points: str, message: str, tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(tiny_bundle), "--images", str(toy_images), "--points", points]
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
