"""The table's figures, against ones computed by hand from the model's own outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import checkpoint, evaluate
from models.data import load_images
from models.macs import shape_of, used_macs
from models.preprocessing import normalise
from tests.conftest import SIZE_PX


def test_a_row_is_what_the_model_does(toy_checkpoint: Path, toy_images: Path) -> None:
    model, images = checkpoint.load(toy_checkpoint), load_images(str(toy_images), "test", SIZE_PX)
    (row,) = evaluate.evaluate(model, images, (0.5,), 0.997, batch_size=5)
    pixels, labels = next(iter(images.batches(12)))
    with torch.inference_mode():
        out = model(normalise(pixels, model.config.mean, model.config.std), torch.full((12,), 0.5))
    assert row["top1"] == pytest.approx(float((out.logits.argmax(1) == labels).float().mean()), abs=1e-4)
    assert row["top5"] == 1.0  # of three classes
    assert row["skipped_patches"] == pytest.approx(float((~out.kept).sum(-1).float().mean()), abs=0.01)
    ratio = used_macs(shape_of(model), out.kept).double() / shape_of(model).dense
    assert row["macs_ratio"] == pytest.approx(float(ratio.mean()), abs=1e-4)
    assert len(row["keep_per_layer"]) == len(row["gate_accuracy_per_layer"]) == 6


def test_the_command_prints_a_table_and_one_json_line(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(toy_checkpoint), "--data", str(toy_images), "--thresholds", "0,0.5"]
    assert evaluate.main([*arguments, "--max-images", "6", "--out", str(tmp_path / "e.json")]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0].split()[0] == "threshold"
    assert json.loads(printed[-1]) == json.loads((tmp_path / "e.json").read_text())
    assert json.loads(printed[-1])["images"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere", "--data", "x"], "config.json is missing"),
        (["--checkpoint", "{checkpoint}", "--data", "./nowhere"], "./nowhere is no folder"),
        (["--checkpoint", "{checkpoint}", "--data", "{data}", "--image-size", "50"], "whole number of 16-px patches"),
        (["--checkpoint", "{checkpoint}", "--data", "{data}", "--thresholds", "low"], "low"),
    ],
)
def test_unusable_input_gets_one_line_and_exit_2(
    arguments: list[str], message: str, toy_checkpoint: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(checkpoint=toy_checkpoint, data=toy_images) for a in arguments]
    assert evaluate.main(filled) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
