"""Parity must fail when there is something to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export import parity
from export.parity import Parity, begins_with_a_tie, compare, onnx_infer
from models import checkpoint
from models.preprocessing import normalise
from service.engine import EngineOutput
from tests.conftest import GATED


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


def test_the_true_graph_holds(tiny_bundle: Path, images: NDArray[np.uint8]) -> None:
    found = compare(checkpoint.load(tiny_bundle), onnx_infer(tiny_bundle / "model.onnx"), images)
    assert found.holds
    assert found.kept_agreement == 1


@pytest.mark.parametrize("fault", ["logits", "mask", "neighbours"])
def test_a_wrong_graph_is_found_out(fault: str, tiny_bundle: Path, images: NDArray[np.uint8]) -> None:
    true = onnx_infer(tiny_bundle / "model.onnx")

    def infer(pixels: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        logits, kept = true(pixels, threshold)
        if fault == "logits":
            logits = logits + np.float32(0.01)
        elif fault == "mask":
            kept = kept.copy()
            kept[0, 0, 0] = ~kept[0, 0, 0]
        else:
            logits = logits - logits.mean(axis=0)  # a row that depends on its batch
        return EngineOutput(logits, kept)

    assert not compare(checkpoint.load(tiny_bundle), infer, images).holds


def test_a_score_within_rounding_of_its_threshold_may_fall_to_either_side() -> None:
    differs, close = np.zeros((5, 3, 4), bool), np.zeros((5, 3, 4), bool)
    differs[1, 1, 2] = close[1, 1, 2] = differs[1, 2] = True  # a tie, and what follows from it
    differs[2, 1, 2] = close[2, 2, 2] = differs[2, 2, 2] = True  # it differed before
    differs[3, 1, :2] = close[3, 1, 0] = True  # two patches differ, one is a tie
    close[4] = True  # nothing differs
    assert begins_with_a_tie(differs, close).tolist() == [False, True, False, False, False]


def test_ties_are_found_by_the_scores(tiny_bundle: Path, images: NDArray[np.uint8]) -> None:
    model = checkpoint.load(tiny_bundle)
    with torch.inference_mode():
        pixels = normalise(torch.from_numpy(images), model.config.mean, model.config.std)
        score = float(model(pixels, torch.full((9,), 0.5)).scores[0, GATED[0], 3])  # no earlier gate decides on it
    for offset, tie in ((0.0, True), (0.01, False)):
        _, close = parity._reference(model, images, np.full(9, score + offset, np.float32))
        assert bool(close[0, GATED[0], 3]) == tie
        assert not close[:, 0].any()  # no gate


def test_the_verdict_is_part_of_the_record() -> None:
    assert Parity(10, 1e-5, 1e-6, 1.0, 1.0, 1.0).as_json()["holds"]
    assert not Parity(10, 1e-5, 1e-6, 1.0, 0.9, 0.99).as_json()["holds"]
    assert Parity(10, 1e-5, 1e-6, 1.0, 0.99, 0.99, 0.01).as_json()["holds"]
    assert not Parity(10, 1e-5, 1e-6, 1.0, 0.9, 0.99, 0.1).as_json()["holds"]
