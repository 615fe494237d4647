"""Forcing every image to the mean keeps the same number in each, the highest-scored ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import adaptive
from tests.models.builders import random_images, random_vit

Capture = pytest.CaptureFixture[str]


def test_every_image_keeps_the_layers_count_of_its_highest_scores() -> None:
    model, counts = random_vit(gated_layers=(0, 2, 3)), [7, 1, 30]
    with torch.inference_mode():
        out = model(random_images(model, 4), torch.zeros(4), decide=adaptive.keep_highest(iter(counts)))
    for layer, count in zip((0, 2, 3), counts, strict=True):
        kept, scores = out.kept[:, layer], out.scores[:, layer]
        assert kept.sum(1).tolist() == [count] * 4
        for i in range(4):
            assert scores[i][kept[i]].min() >= scores[i][~kept[i]].max()


def test_the_command_compares_at_about_equal_macs(toy_checkpoint: Path, toy_images: Path, capsys: Capture) -> None:
    evaluation = toy_checkpoint / "evaluation.json"
    rows = json.loads(evaluation.read_text())["rows"]
    threshold = next(row["threshold"] for row in rows if row["threshold"] > 0)
    arguments = ["--checkpoint", str(toy_checkpoint), "--data", str(toy_images), "--thresholds", str(threshold)]
    assert adaptive.main([*arguments, "--evaluation", str(evaluation)]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["forced"]["macs_ratio"] == pytest.approx(row["adaptive"]["macs_ratio"], abs=0.03)


def test_an_evaluation_of_other_images_is_refused(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = json.loads((toy_checkpoint / "evaluation.json").read_text()) | {"images": 5}
    (tmp_path / "e.json").write_text(json.dumps(other))
    arguments = ["--checkpoint", str(toy_checkpoint), "--data", str(toy_images), "--evaluation"]
    assert adaptive.main([*arguments, str(tmp_path / "e.json")]) == 2
    assert "is of 5 test images, not of these" in capsys.readouterr().err
