"""The whole line on toy data, once a run: images -> dense -> gates -> joint -> bundle, by the real commands."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
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


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder (split/class/image), 32 px, 24 training and 4 test images a class: a quadrant of its colour.

    The rest is grey noise, so that a gate has something to skip.
    """
    root, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 4)):
        for name, colour in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image, (top, left) = np.full((32, 32, 3), 128.0), 16 * rng.integers(0, 2, 2)
                image[top : top + 16, left : left + 16] = colour
                pixels = np.clip(image + rng.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def toy_checkpoint(toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model after all three stages, for the sizes 64 and 32 px, and everything the export asks for beside it."""
    from models import evaluate, train

    root = tmp_path_factory.mktemp("runs")
    shared = ["--data", str(toy_images), "--batch-size", "16", "--holdout-ratio", "0.17", "--shift-px", "1"]
    shared += ["--image-size", str(SIZE_PX), "--gate", "context", "--gated-layers", ",".join(map(str, GATED))]

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
    return root / "joint"


@pytest.fixture(scope="session")
def int8_bundle(toy_checkpoint: Path, toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle named `tiny`, for 64 (full) and 32 px, made by `python -m export --calibrate`."""
    from export.__main__ import main
    from service.artifact import load_bundle

    out = tmp_path_factory.mktemp("int8") / "tiny"
    options = ["--checkpoint", str(toy_checkpoint), "--out", str(out), "--images", str(toy_images)]
    calibrate = ["--calibrate", str(toy_images), "--holdout-ratio", "0.17"]
    assert main([*options, "--origin", "Random numbers.", *calibrate]) == 0
    return load_bundle(out)


@pytest.fixture(scope="session")
def tiny_bundle(int8_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float32 and float16 alone, as it is without `--calibrate`: most tests want what was trained, exactly.

    Its graphs are kept from there, because writing them takes a minute and a half.
    """
    from export.__main__ import main

    out = tmp_path_factory.mktemp("zoo") / "tiny"
    shutil.copytree(int8_bundle.path, out)
    manifest = json.loads((out / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if "int8" in name]:
        (out / name).unlink()
        del manifest["files"][name]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert main(["--checkpoint", str(out), "--out", str(out), "--keep-graphs"]) == 0
    return out
