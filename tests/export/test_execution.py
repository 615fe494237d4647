"""Choices are compared with the served way in one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import execution
from service.artifact import Bundle, load_bundle
from service.execution import CPU, Execution

SERVED = Execution((CPU,), "float32", threads=2, max_batch_size=4)
QUICK = ["--seconds", "0.01", "--batch-sizes", "1,3"]


def test_every_alternative_is_compared_with_the_served_way(
    tiny_bundle: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "execution.json"
    command = [
        "--bundle",
        str(tiny_bundle),
        "--images",
        str(toy_images),
        *QUICK,
        "--limits",
        "1,2",
        "--threshold",
        "0.4",
    ]
    assert execution.main([*command, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert json.loads(out.read_text()) == found
    assert found["command"].startswith("python -m export.execution --bundle ")
    assert found["version"] == load_bundle(tiny_bundle).manifest.version
    assert found["machine"]["onnxruntime"]
    assert (found["precision"], found["threshold"]) == ("float32", 0.4)
    assert list(found["speed"]) == ["1", "3"]
    for ratios in found["speed"].values():
        assert ratios[execution.SERVED] == 1
        assert {*execution.CHANGES, execution.OFFLINE, "arena shrunk after each run"} < set(ratios)
        assert all(ratio > 0 for ratio in ratios.values())
    timed = [(row["size_px"], row["threshold"], row["batch_size"]) for row in found["batches"]]
    assert timed == [(px, threshold, rows) for px in (64, 32) for threshold in (0, 0.4) for rows in (1, 2)]
    assert sum(line.startswith("| ") for line in lines) == 1 + len(found["speed"]["1"]) + 1 + 2
    assert f"{found['loading']['offline_bytes'] / 1e6:.1f} MB" in "".join(lines[:-1])


def test_what_is_compared_gives_the_served_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    file, offline = tiny_bundle / "anysize.onnx", tmp_path / "optimised.onnx"
    execution.optimise(file, SERVED, offline)
    runs = execution.alternatives(file, offline, SERVED)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    answers = {name: run(images, np.full(3, 0.3, np.float32)) for name, run in runs.items()}
    logits, kept = answers[execution.SERVED]
    assert 0 < kept.mean() < 1
    compared = {name: found for name, found in answers.items() if found is not None}  # none where a batch is dealt
    assert len(compared) == len(answers) - 2
    for name, (other_logits, other_kept) in compared.items():
        assert (other_kept == kept).all(), name
        np.testing.assert_allclose(other_logits, logits, atol=1e-4, err_msg=name)


def test_a_graph_that_is_optimised_offline_holds_its_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    file, offline = tiny_bundle / "anysize.onnx", tmp_path / "optimised.onnx"
    execution.optimise(file, SERVED, offline)
    before, after = (onnx.load(graph, load_external_data=False) for graph in (file, offline))
    assert any(weights.external_data for weights in before.graph.initializer)
    assert not any(weights.external_data for weights in after.graph.initializer)
    assert len(after.graph.node) < len(before.graph.node)
    found = execution.loading(file, offline, SERVED)
    assert found["offline_bytes"] == offline.stat().st_size > (tiny_bundle / "weights.safetensors").stat().st_size
    assert min(found["offline_s"], found["online_s"]) > 0


def test_the_precision_is_the_services_own_unless_one_is_asked_for(
    int8_bundle: Bundle, tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--images", str(toy_images), "--seconds", "0.01", "--batch-sizes", "1", "--limits", "1"]
    for asked, precision in (("auto", "int8"), ("float32", "float32")):
        assert execution.main(["--bundle", str(int8_bundle.path), *quick, "--precision", asked]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["precision"] == precision
    assert execution.main(["--bundle", str(tiny_bundle), *quick, "--precision", "int8"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"export.execution: {tiny_bundle} has no int8 graph"


@pytest.mark.parametrize("wrong", [["--images", "nowhere"], ["--batch-sizes", "0"], ["--limits", "1,x"]])
def test_what_cant_be_used_is_one_line(
    wrong: list[str], tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execution.main(["--bundle", str(tiny_bundle), "--images", str(toy_images), *QUICK, *wrong]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("export.execution: ")
