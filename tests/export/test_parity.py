"""Parity must fail when there is something to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.parity import Parity, compare, onnx_infer
from models import checkpoint
from service.engine import EngineOutput


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


def test_the_true_graph_holds(tiny_bundle: Path, images: NDArray[np.uint8]) -> None:
    parity = compare(checkpoint.load(tiny_bundle), onnx_infer(tiny_bundle / "model.onnx"), images)
    assert parity.holds
    assert parity.kept_agreement == 1


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


def test_the_verdict_is_part_of_the_record() -> None:
    assert Parity(10, 1e-5, 1e-6, 1.0, 1.0, 1.0).as_json()["holds"]
    assert not Parity(10, 1e-5, 1e-6, 1.0, 0.9, 0.99).as_json()["holds"]
