"""Early exit: who leaves where, what that costs, and that heads alone learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import checkpoint, train
from models.exits import SURES, exit_logits, exit_macs, leaves_at
from models.macs import shape_of
from tests.conftest import CLASSES, SIZE_PX
from tests.models.builders import random_images, random_vit

EXITS = (1, 3)


def test_an_image_leaves_where_it_is_first_sure_or_not_at_all() -> None:
    sure, unsure = [5.0, 0.0], [0.1, 0.0]  # probabilities 0.99 and 0.52
    answers = torch.tensor([[sure, sure, unsure], [unsure, sure, unsure], [unsure, unsure, sure]])
    assert leaves_at(answers, 0.9).tolist() == [0, 1, 2]
    assert leaves_at(answers, 0.5).tolist() == [0, 0, 0]
    assert leaves_at(answers, 1.0).tolist() == [2, 2, 2]


def test_an_exit_costs_its_layers_and_every_head_that_was_asked() -> None:
    model = random_vit(gated_layers=())
    shape = shape_of(model)
    head, layer = shape.width * shape.classes, shape.layer(0).at(shape.patches)
    first, second, never = exit_macs(shape, EXITS)
    assert first == shape.fixed + 2 * layer
    assert second == first + 2 * layer + head
    assert never == shape.dense + 2 * head


def test_heads_alone_learn_and_spend_less_the_less_sure_an_answer_must_be(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    start = toy_checkpoint.parent / "dense"
    options = ["--stage", "exits", "--exits", "1,3", "--init", str(start), "--data", str(toy_images)]
    options += ["--batch-size", "16", "--holdout-ratio", "0.17", "--epochs", "4", "--learning-rate", "1e-2"]
    assert train.main([*options, "--out", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "train.json").read_text())["history"][-1]["points"]
    assert [point["sure"] for point in points] == list(SURES)
    costs = [point["macs_ratio"] for point in points]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 1 > costs[-1]
    assert points[0]["top1"] >= 0.9
    before, after = checkpoint.load(start), checkpoint.load(tmp_path)
    assert after.config.exits == EXITS
    own = after.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in before.state_dict().items())
    images = random_images(after, 3)
    with torch.inference_mode():
        answers = exit_logits(after, images)
        assert answers.shape == (3, len(EXITS) + 1, len(CLASSES))
        torch.testing.assert_close(answers[:, -1], after.dense(images), atol=1e-4, rtol=0)
        torch.testing.assert_close(after(images, torch.zeros(3)).logits, answers[:, -1], atol=1e-4, rtol=0)


def test_a_model_without_exits_has_nothing_to_train(
    toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--stage", "exits", "--model", "test_vit", "--image-size", str(SIZE_PX), "--data", str(toy_images)]
    assert train.main([*options, "--out", str(tmp_path)]) == 2
    assert "no exits to train: give --exits" in capsys.readouterr().err
