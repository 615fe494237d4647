"""The table's figures, against ones computed by hand from the model's own outputs."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import checkpoint, evaluate
from models.data import load_images
from models.frontier import frontier
from models.labels import keep_labels
from models.macs import shape_of, used_macs
from models.preprocessing import normalise
from service.engine import EngineOutput
from service.errors import InferenceFailed
from service.onnx_engine import OnnxEngine
from tests.conftest import GATED, SIZE_PX, SMALL_PX


def test_a_row_is_what_the_model_does(toy_checkpoint: Path, toy_images: Path) -> None:
    model, images = checkpoint.load(toy_checkpoint), load_images(str(toy_images), "test", SIZE_PX)
    (tally,) = evaluate.evaluate(model, images, (0.5,), 0.997, batch_size=5)
    row, predictions = tally.row(), tally.predictions()
    pixels, labels = next(iter(images.batches(12)))
    with torch.inference_mode():
        out = model(normalise(pixels, model.config.mean, model.config.std), torch.full((12,), 0.5))
    assert (row["size_px"], row["threshold"], row["images"]) == (SIZE_PX, 0.5, 12)
    assert row["top1"] == pytest.approx(float((out.logits.argmax(1) == labels).float().mean()), abs=1e-4)
    assert row["top5"] == 1.0  # of three classes
    gated = list(GATED)
    assert 0 < row["skipped_patches"] < 16
    assert row["skipped_patches"] == pytest.approx(float((~out.kept[:, gated]).sum(-1).float().mean()), abs=0.01)
    ratio = used_macs(shape_of(model), out.kept, gated=True).double() / shape_of(model).dense
    assert row["macs_ratio"] == pytest.approx(float(ratio.mean()), abs=1e-4)
    assert row["macs_ratio_p90"] == pytest.approx(float(ratio.quantile(0.9)), abs=1e-4)
    assert row["keep_per_layer"] == pytest.approx(out.kept.float().mean((0, 2)).tolist(), abs=1e-4)
    np.testing.assert_array_equal(predictions["answer"], out.logits.argmax(1))
    np.testing.assert_allclose(predictions["probability"], out.logits.softmax(1).amax(1), atol=1e-5)
    np.testing.assert_allclose(predictions["macs_ratio"], ratio, atol=1e-6)


def test_gates_are_judged_by_the_labels_of_the_dense_forward(toy_checkpoint: Path, toy_images: Path) -> None:
    model = checkpoint.load(toy_checkpoint.parent / "gates")
    images = load_images(str(toy_images), "test", SIZE_PX)
    tallies = evaluate.evaluate(model, images, (0.0, 1.0), 0.997)
    pixels, _ = next(iter(images.batches(12)))
    with torch.inference_mode():
        hidden = model.trajectory(normalise(pixels, model.config.mean, model.config.std)).hidden
    keep = [keep_labels(hidden[i][:, 1:], hidden[i + 1][:, 1:], 0.997).float().mean().item() for i in GATED]
    assert 0.05 < sum(keep) / len(keep) < 0.95
    every, none = (tally.row() for tally in tallies)
    assert every["gate_accuracy_per_layer"] == pytest.approx(keep, abs=1e-4)
    assert none["gate_accuracy_per_layer"] == pytest.approx([1 - share for share in keep], abs=1e-4)
    assert every["gate_accuracy"] == pytest.approx(sum(keep) / len(keep), abs=1e-4)


def test_other_sizes_cost_their_share_of_the_full_dense_model(toy_checkpoint: Path, toy_images: Path) -> None:
    model = checkpoint.load(toy_checkpoint)
    small, full = checkpoint.at_size(model, SMALL_PX), shape_of(model).dense
    images = load_images(str(toy_images), "test", SMALL_PX)
    (tally,) = evaluate.evaluate(small, images, (0.0,), 0.9, full_macs=full)
    assert tally.row()["macs_ratio"] == round(shape_of(small).dense / full, 4) < 0.35  # at threshold 0 no gate runs


def test_the_command_prints_a_table_and_one_json_line(toy_checkpoint: Path, toy_images: Path, tmp_path: Path) -> None:
    result, printed, npz = run_command(
        tmp_path, "--checkpoint", str(toy_checkpoint), "--data", str(toy_images), "--sizes", "32,64"
    )
    assert printed[0].split()[:3] == ["px", "threshold", "skipped"]
    assert json.loads(printed[-1]) == result
    assert result["images"] == 6
    assert [(row["size_px"], row["threshold"]) for row in result["rows"]] == [(32, 0), (32, 0.5), (64, 0), (64, 0.5)]
    best = frontier(result["rows"])
    assert [line.endswith("*") for line in printed[1:5]] == [row in best for row in result["rows"]]
    assert result["timm_forward_macs"] > result["dense_macs"] == shape_of(checkpoint.load(toy_checkpoint)).dense
    assert npz["answer"].shape == npz["probability"].shape == npz["macs_ratio"].shape == (4, 6)
    assert npz["label"].shape == (6,)
    assert npz["point"].tolist() == [[32, 0], [32, 0.5], [64, 0], [64, 0.5]]
    assert [row["top1"] for row in result["rows"]] == pytest.approx((npz["answer"] == npz["label"]).mean(1), abs=1e-4)


def test_a_bundle_is_measured_as_it_is_served_and_agrees_with_its_checkpoint(
    tiny_bundle: Path, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ["--data", str(toy_images)]
    torchs, _, _ = run_command(tmp_path, "--checkpoint", str(tiny_bundle), "--sizes", "64,32", *shared)
    calls: list[tuple[int, ...]] = []
    infer = OnnxEngine.infer

    def counted(engine: OnnxEngine, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        calls.append(images.shape)
        return infer(engine, images, threshold)

    monkeypatch.setattr(OnnxEngine, "infer", counted)
    served, printed, _ = run_command(tmp_path, "--bundle", str(tiny_bundle), *shared)
    assert calls == [(6, 64, 64, 3)] * 2 + [(6, 32, 32, 3)] * 2  # all its sizes, by the engine
    assert "onnxruntime" in served["runtime"]
    assert "torch" in torchs["runtime"]
    for one, other in zip(served["rows"], torchs["rows"], strict=True):
        assert (one["gate_accuracy"], one["gate_accuracy_per_layer"]) == (None, [])
        assert other["gate_accuracy"] is not None
        names = set(one) - {"gate_accuracy", "gate_accuracy_per_layer"}
        assert {name: one[name] for name in names} == {name: other[name] for name in names}
    assert printed[1].split()[-2:] in (["%", "-"], ["-", "*"])


def test_nobody_who_evaluates_a_checkpoint_loads_the_runtime() -> None:
    code = "import sys, models.evaluate; print([m for m in ('onnxruntime', 'export', 'service') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_is_asked_for_its_own_sizes_and_what_fails_is_said_in_one_line(
    tiny_bundle: Path, toy_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, ...]] = []

    def fails(engine: OnnxEngine, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        calls.append(images.shape)
        raise InferenceFailed("the model gave logits that are not finite")

    monkeypatch.setattr(OnnxEngine, "infer", fails)
    arguments = ["--bundle", str(tiny_bundle), "--data", str(toy_images), "--sizes"]
    assert evaluate.main([*arguments, "64,48"]) == 2
    assert capsys.readouterr().err.endswith(f"--sizes 64, 48: {tiny_bundle} has 64, 32 px\n")
    assert not calls  # found before the long work
    assert evaluate.main([*arguments, "32,64"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"models.evaluate: {tiny_bundle}: the model gave logits that are not finite"


def run_command(folder: Path, *arguments: str) -> tuple[dict[str, Any], list[str], Any]:
    """What the command wrote, printed (lines) and predicted, for six images and two thresholds."""
    out, predictions = folder / "new" / "e.json", folder / "newer" / "p.npz"
    more = ["--thresholds", "0,0.5", "--max-images", "6", "--device", "cpu", "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert evaluate.main([*arguments, *more, "--predictions", str(predictions)]) == 0
    return json.loads(out.read_text()), printed.getvalue().strip().splitlines(), np.load(predictions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere", "--data", "x"], "config.json is missing"),
        (["--bundle", "{checkpoint}", "--data", "{data}"], "manifest.json is missing"),
        (["--checkpoint", "{checkpoint}", "--data", "./nowhere"], "./nowhere is no folder"),
        (["--checkpoint", "{checkpoint}", "--data", "{data}", "--sizes", "50"], "whole number of 16-px patches"),
    ],
)
def test_unusable_input_gets_one_line_and_exit_2(
    arguments: list[str], message: str, toy_checkpoint: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(checkpoint=toy_checkpoint, data=toy_images) for a in arguments]
    assert evaluate.main(filled) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
