"""What command lines take, and how they refuse the rest: before the work, in one line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import adaptive, analyse, evaluate
from models.config import PrunedViTConfig, TrainConfig
from models.options import count, device, integers, levels, new_file, positive


def test_numbers_are_read() -> None:
    assert (count("0"), positive("3"), integers("112, 84,"), integers(""), levels("0,0.5")) == (
        *(0, 3, (112, 84), (), (0.0, 0.5)),
    )


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (count, "-1", "-1 is below 0"),
        (positive, "0", "give 1 or more"),
        (integers, "1,-2", "-2 is below 0"),
        (levels, "0,1.5", r"in \[0, 1\]"),
        (levels, "nan", r"in \[0, 1\]"),
        (levels, "", "one threshold or more"),
        (device, "foo", "'foo' here .*: give auto, cpu or cuda"),
        (device, "meta", "'meta' here .*: give auto, cpu or cuda"),
    ],
)
def test_what_cant_be_used_is_told(read: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        read(text)


def test_the_gpu_is_taken_where_there_is_one() -> None:
    assert device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device("cpu") == "cpu"


def test_a_new_files_folder_is_there_before_the_work_begins(tmp_path: Path) -> None:
    assert new_file(str(tmp_path / "a" / "b" / "c.json")) == tmp_path / "a" / "b" / "c.json"
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(ArgumentTypeError, match="is a folder: name a file in it"):
        new_file(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentTypeError, match="its folder can't be made"):
        new_file(str(tmp_path / "file" / "c.json"))


@pytest.mark.parametrize("module", [evaluate, adaptive, analyse])
def test_commands_ask_for_a_device_that_computes(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        module.parse(["--checkpoint", "x", "--data", "x", "--evaluation", "x", "--out", "x", "--device", "foo"])
    assert "argument --device: nothing is computed on 'foo'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs 0: has to be 1 or more"),
        ({"batch_size": -1}, "batch-size -1: has to be 1 or more"),
        ({"sizes_px": (112, 0)}, "sizes-px 0: has to be 1 or more"),
        ({"learning_rate": 0.0}, "learning-rate 0.0: has to be above 0"),
        ({"learning_rate": float("nan")}, "learning-rate nan: has to be above 0"),
        ({"weight_decay": float("inf")}, "weight-decay inf: has to be 0 or more"),
        ({"drop_path": 2.0}, "drop-path 2.0: has to be from 0 to 1"),
        ({"max_images": -5}, "max-images -5: has to be 0 or more"),
    ],
)
def test_a_trainings_numbers_have_ranges(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(stage="joint", **setting)


@pytest.mark.parametrize("wrong", [{"image_size_px": 0}, {"gate_hidden": 0}, {"bypass_rank": -1}, {"std": (1.0, 0.0)}])
def test_a_models_numbers_have_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has to be"):
        replace(PrunedViTConfig("test_vit", 64, ("a",)), **wrong)
