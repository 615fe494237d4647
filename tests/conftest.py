"""The whole line on toy data, once a run: images -> dense -> gates -> joint -> bundle, by the real commands."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

if TYPE_CHECKING:
    from service.artifact import Bundle

# No test leaves anything in the user's home, nor finds there what an earlier run has left.
os.environ["SKIPVIT_ENGINE_CACHE"] = tempfile.mkdtemp(prefix="skipvit-engines-")

CLASSES = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (210, 50, 40)}
MODEL = "test_vit"  # timm's own toy: 6 layers, 64 wide, 16-px patches
SIZE_PX, SMALL_PX = 64, 32
GATED = (1, 2, 4)  # not all, because each costs seconds in every export
DENSE = "--epochs 8 --learning-rate 2e-3"
GATES = "--epochs 2 --learning-rate 1e-2 --cosine-threshold 0.997"
JOINT = "--epochs 12 --learning-rate 1e-3 --gate-learning-rate 1e-2 --budget-weight 16"


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder by its name once, though several processes run tests; who comes second waits. Nobody writes there.

    `pytest -n` gives each process a folder in one that is the run's own.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def toy_images(made_once: MadeOnce) -> Path:
    """An image folder (split/class/image), 32 px, 24 training and 4 test images a class: a quadrant of its colour.

    The rest is grey noise, so that a gate has something to skip.
    """
    return made_once("toy", _write_images)


def _write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 4)):
        for name, colour in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image, (top, left) = np.full((32, 32, 3), 128.0), 16 * rng.integers(0, 2, 2)
                image[top : top + 16, left : left + 16] = colour
                pixels = np.clip(image + rng.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def toy_checkpoint(toy_images: Path, made_once: MadeOnce) -> Path:
    """A toy model after all three stages, for the sizes 64 and 32 px, and everything the export asks for beside it."""
    return made_once("runs", lambda root: _train(root, toy_images)) / "joint"


def _train(root: Path, toy_images: Path) -> None:
    from models import evaluate, train
    from models.config import IMAGENET_MEAN, IMAGENET_STD

    shared = ["--data", str(toy_images), "--batch-size", "16", "--holdout-ratio", "0.17", "--shift-px", "1"]
    shared += ["--image-size", str(SIZE_PX), "--gate", "context", "--gated-layers", ",".join(map(str, GATED))]

    shared += ["--mean", *map(str, IMAGENET_MEAN), "--std", *map(str, IMAGENET_STD)]  # not what `test_vit`'s own are

    def stage(name: str, *options: str) -> None:
        assert train.main([*shared, "--stage", name, "--out", str(root / name), *options]) == 0

    sizes = f"{SIZE_PX},{SMALL_PX}"
    stage("dense", "--model", MODEL, "--sizes-px", sizes, *DENSE.split())
    stage("gates", "--init", str(root / "dense"), *GATES.split())
    stage("joint", "--init", str(root / "gates"), "--teacher", str(root / "dense"), "--sizes-px", sizes, *JOINT.split())
    measure = ["--checkpoint", str(root / "joint"), "--data", str(toy_images), "--sizes", sizes]
    measure += ["--thresholds", "0,0.2,0.4,0.6,1", "--holdout-ratio", "0.17"]
    assert evaluate.main([*measure, "--out", str(root / "joint" / "evaluation.json")]) == 0
    held = [*measure, "--split", "heldout", "--out", str(root / "joint" / "calibration.json")]
    assert evaluate.main(held) == 0


@pytest.fixture(scope="session")
def int8_bundle(toy_checkpoint: Path, toy_images: Path, made_once: MadeOnce) -> Bundle:
    """A verified bundle named `tiny`, for 64 (full) and 32 px, made by `python -m export --calibrate`."""
    from export.__main__ import main
    from service.artifact import load_bundle

    def export(folder: Path) -> None:
        options = ["--checkpoint", str(toy_checkpoint), "--out", str(folder / "tiny"), "--images", str(toy_images)]
        calibrate = ["--calibrate", str(toy_images), "--holdout-ratio", "0.17"]
        assert main([*options, "--origin", "Random numbers.", *calibrate]) == 0

    return load_bundle(made_once("int8", export) / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(int8_bundle: Bundle, made_once: MadeOnce) -> Path:
    """The same in float32 and float16 alone, as it is without `--calibrate`: most tests want what was trained, exactly.

    Its graphs are kept from there, because writing them takes a minute and a half.
    """
    from export.__main__ import main

    def strip(folder: Path) -> None:
        out = folder / "tiny"
        shutil.copytree(int8_bundle.path, out)
        manifest = json.loads((out / "manifest.json").read_text())
        for name in [name for name in manifest["files"] if "int8" in name]:
            (out / name).unlink()
            del manifest["files"][name]
        (out / "manifest.json").write_text(json.dumps(manifest))
        assert main(["--checkpoint", str(out), "--out", str(out), "--keep-graphs"]) == 0

    return made_once("zoo", strip) / "tiny"
