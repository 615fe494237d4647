"""Training learns, resumes where it stopped, and says in one line what is wrong with its input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import checkpoint, train
from models.config import TrainConfig
from tests.conftest import MODEL, SIZE_PX

Capture = pytest.CaptureFixture[str]


def options(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "--stage",
        "dense",
        "--data",
        str(data),
        "--out",
        str(out),
        "--model",
        MODEL,
        "--image-size",
        str(SIZE_PX),
        "--batch-size",
        "16",
        "--holdout-ratio",
        "0.17",
        *more,
    ]


def test_the_line_learned_its_toy_classes_and_its_gates_follow_the_labels(toy_checkpoint: Path) -> None:
    dense = json.loads((toy_checkpoint.parent / "dense" / "train.json").read_text())
    assert dense["history"][-1]["accuracy"] >= 0.9
    gates = json.loads((toy_checkpoint / "train.json").read_text())["history"][-1]
    constant = sum(max(keep, 1 - keep) for keep in gates["label_keep"]) / len(gates["label_keep"])
    assert gates["accuracy"] >= constant - 0.02  # at least as good as always giving the more frequent answer
    evaluation = json.loads((toy_checkpoint / "evaluation.json").read_text())
    skipped = [row["skipped_patches"] for row in evaluation["rows"]]
    assert skipped[0] == 0
    assert skipped == sorted(skipped)
    assert skipped[-1] == evaluation["patches"]


def test_gates_training_leaves_the_backbone_as_it_was(toy_checkpoint: Path) -> None:
    before = checkpoint.load(toy_checkpoint.parent / "dense").vit.state_dict()
    after = checkpoint.load(toy_checkpoint).vit.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_run_goes_on_and_ends_where_an_unbroken_one_does(
    toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    whole = options(toy_images, tmp_path / "whole", "--epochs", "2", "--drop-path", "0")
    assert train.main(whole) == 0

    class Stopped(Exception):
        pass

    step = train.Run._step
    steps: list[int] = []

    def stop_in_the_second_epoch(run: train.Run, *arguments: object) -> float:
        if len(steps) == 6:
            run.save()
            raise Stopped
        steps.append(0)
        return step(run, *arguments)  # type: ignore[arg-type]

    broken = options(toy_images, tmp_path / "broken", "--epochs", "2", "--drop-path", "0")
    monkeypatch.setattr(train.Run, "_step", stop_in_the_second_epoch)
    with pytest.raises(Stopped):
        train.main(broken)
    monkeypatch.undo()
    capsys.readouterr()
    assert train.main(broken) == 0
    assert "resumed at epoch 2, 32 images in" in capsys.readouterr().err
    one, other = (torch.load(tmp_path / name / train.STATE, weights_only=True)["model"] for name in ("whole", "broken"))
    # Far below what one lost or repeated step would change: a step moves a weight by up to the learning rate, 5e-4.
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_a_folder_with_another_run_is_not_overwritten(toy_checkpoint: Path, toy_images: Path, capsys: Capture) -> None:
    assert train.main(options(toy_images, toy_checkpoint.parent / "dense", "--epochs", "9")) == 2
    assert "holds a run with other settings: give another --out or delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "./nowhere"}, "./nowhere is no folder"),
        ({"--model": "resnet18"}, "can't build 'resnet18'|resnet18 is a ResNet"),
        ({"--init": "nowhere.safetensors"}, "nowhere.safetensors is missing"),
        ({"--holdout-ratio": "1"}, "can't hold out the share 1.0 of 72"),
    ],
)
def test_unusable_input_gets_one_line_and_exit_2(
    change: dict[str, str], message: str, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    import re

    arguments = options(toy_images, tmp_path / "out")
    for name, value in change.items():
        arguments += [name, value]
    assert train.main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("models.train: ")
    assert re.search(message, last)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    config = TrainConfig(stage="dense", learning_rate=1.0, warmup_ratio=0.1)
    rates = [train.learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
