"""Every recipe, and every command in its header, is one that the training understands; `make train` follows them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from models.train import parse

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "models" / "recipes").glob("*.args"))
COMMAND = "python -m models.train "


def header_commands(recipe: Path) -> list[str]:
    """The commands in a recipe's comment, continuation lines joined."""
    header = "\n".join(line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#"))
    return [line for line in header.replace("\\\n", "").splitlines() if line.startswith(COMMAND)]


def made(*arguments: str) -> str:
    command = ["make", "--dry-run", "train", "DATA=toys", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return " ".join(done.replace("\\\n", " ").split())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe.name))
def test_a_recipe_has_options_that_exist_and_says_how_it_is_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # which the paths in the commands start from
    options = parse([f"@{recipe}", "--data", "toys", "--out", "here"])
    found = [parse(shlex.split(command.removeprefix(COMMAND))) for command in header_commands(recipe)]
    assert f"@models/recipes/{recipe.name} " in " ".join(header_commands(recipe))
    assert (options.stage, options.epochs) == (found[-1].stage, found[-1].epochs)


def test_an_option_that_no_training_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.args").write_text("--stage dense\n--epoch-count 3  # no such thing\n")
    with pytest.raises(SystemExit):
        parse([f"@{tmp_path / 'wrong.args'}", "--data", "toys", "--out", "here"])
    assert "unrecognized arguments: --epoch-count" in capsys.readouterr().err


def test_make_train_goes_from_a_backbone_to_a_bundle() -> None:
    text = made()
    fetched = re.search(r"create_model\('(\w+)', pretrained=True\)\.state_dict\(\), '(\S+)'", text)
    assert fetched is not None or "runs/vit_small_patch14_dinov2.safetensors" in text  # fetched before
    assert "@models/recipes/teacher.args --data toys --init runs/vit_small_patch14_dinov2.safetensors" in text
    assert "@models/recipes/joint.args --data toys --init runs/teacher --teacher runs/teacher" in text
    assert text.count("-m models.evaluate --checkpoint runs/joint") == 2
    assert "-m export --checkpoint runs/joint --out runs/cifar100-vits14" in text


def test_make_train_takes_another_start_and_options_for_a_dry_run() -> None:
    few = "--max-images 48 --epochs 1"
    text = made(f"INIT={RECIPES[0]}", f"TRAIN_OPTIONS={few}", "EVALUATE_OPTIONS=--max-images 30")
    assert "create_model" not in text
    assert f"@models/recipes/teacher.args {few} --data toys --init {RECIPES[0]} " in text
    assert f"@models/recipes/joint.args {few} " in text
    assert text.count(" --max-images 30 ") == 2
