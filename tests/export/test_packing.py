"""Every way of packing is what its name says and answers as the served graph does; other graphs are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from export import packing
from export.execution import SERVED, Run
from export.parity import LOGIT_TOLERANCE, image_array
from export.to_onnx import ExportError
from models.data import load_images
from service.artifact import load_bundle
from tests.conftest import GATED, SIZE_PX

LIMITS = np.array([0, 0.3, 0.5, 0.7, 1], np.float32)
OPERATORS = ("NonZero", "TopK", "Gather", "GatherElements", "ScatterND", "ScatterElements", "Where")
GATED_LAYERS = len(GATED)


def graph(folder: Path, name: str) -> ModelProto:
    return onnx.load(folder / name, load_external_data=False)


@pytest.fixture(scope="module")
def served(tiny_bundle: Path) -> ModelProto:
    return graph(tiny_bundle, load_bundle(tiny_bundle).manifest.served["float32"])


def test_every_way_answers_as_the_served_graph_does(tiny_bundle: Path, toy_images: Path) -> None:
    images = image_array(load_images(str(toy_images), "test", 1), SIZE_PX)
    runs = packing.sessions(load_bundle(tiny_bundle), "float32", threads=1)
    for size in (1, 3, 5, len(images)):  # rows in a batch
        limits = np.resize(np.roll(LIMITS, size), size)
        logits, kept = runs[SERVED](images[:size], limits)
        for name, run in runs.items():
            others: tuple[NDArray[np.float32], NDArray[np.bool_]] = run(images[:size], limits)
            np.testing.assert_array_equal(others[1], kept, err_msg=name)
            np.testing.assert_allclose(others[0], logits, atol=LOGIT_TOLERANCE, err_msg=name)
    counts = kept[:, GATED].sum((1, 2))  # of the largest batch: something to pad
    assert counts[limits == 0].min() == GATED_LAYERS * kept.shape[2]
    assert counts[limits == 1].max() == 0
    assert len(set(counts)) > 3
    packing.check(runs, images, [0.3, 0.6], LOGIT_TOLERANCE)


def test_every_way_has_the_operators_of_its_name(served: ModelProto) -> None:
    layers = packing.packings(served)
    assert len(layers) == GATED_LAYERS
    found = {
        name: Counter(node.op_type for node in packing.changed(served, changes).graph.node)
        for name, changes in packing.alternatives(layers).items()
    }
    as_served = found.pop(SERVED)
    more = {
        name: {kind: (ops[kind] - as_served[kind]) / GATED_LAYERS for kind in OPERATORS if ops[kind] != as_served[kind]}
        for name, ops in found.items()
    }
    assert more == {
        "one gather of both": {"Gather": -1},
        f"rows up to a multiple of {packing.BUCKET}": {},
        "TopK, the largest count": {"NonZero": -1, "TopK": 1},
        f"TopK, up to a multiple of {packing.BUCKET}": {"NonZero": -1, "TopK": 1},
        "TopK, GatherElements, ScatterElements": {
            **{"NonZero": -1, "TopK": 1, "Gather": -2, "GatherElements": 2},
            **{"ScatterND": -1, "ScatterElements": 1},
        },
        "nothing packed": {"NonZero": -1, "Gather": -2, "ScatterND": -1, "Where": 1},
    }


def test_a_graph_that_packs_otherwise_is_refused(tiny_bundle: Path, served: ModelProto) -> None:
    with pytest.raises(ExportError, match="nothing is packed"):
        packing.packings(graph(tiny_bundle, load_bundle(tiny_bundle).manifest.dense["float32"]))
    other = ModelProto()
    other.CopyFrom(served)
    next(node for node in other.graph.node if node.op_type == "ScatterND").op_type = "ScatterElements"
    with pytest.raises(ExportError, match="two gathers and a scatter: .*ScatterElements"):
        packing.packings(other)


@pytest.mark.parametrize(
    ("apart", "flipped", "told"),
    [(1, False, "5 have other logits, 0 other"), (0, True, "0 have other logits, 5 other"), (np.nan, False, "5 have")],
)
def test_another_answer_is_refused(apart: float, flipped: bool, told: str) -> None:
    def run(apart: float, flipped: bool) -> Run:
        return lambda images, _: (np.full((len(images), 3), apart), np.full((len(images), 2, 4), flipped))

    runs, images = {SERVED: run(0, False), "other": run(apart, flipped)}, np.zeros((5, 2, 2, 3), np.uint8)
    with pytest.raises(ExportError, match=f"other: .*{told}"):
        packing.check(runs, images, [0.5], LOGIT_TOLERANCE)


def test_the_command_compares_every_way(
    tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(tiny_bundle), "--images", str(toy_images), "--seconds", "0.01", "--batch-sizes", "1,3"]
    assert packing.main([*command, "--thresholds", "0.3,0.6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])["speed"]
    assert list(found) == ["0.3", "0.6"]
    for by_size in found.values():
        assert list(by_size) == ["1", "3"]
        for ratios in by_size.values():
            assert ratios[SERVED] == 1
            assert len(ratios) == 7
    assert sum(line.startswith("| TopK") for line in lines) == 2 * 3
    for refused in (["--precision", "int8"], ["--thresholds", "1.5"], ["--images", str(toy_images / "nowhere")]):
        assert packing.main([*command, *refused]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
