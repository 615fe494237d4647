"""The whole line on toy data, once a run: images -> dense -> gates -> evaluation -> bundle, by the real commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (210, 50, 40)}
MODEL = "test_vit"  # timm's own toy: 6 layers, 64 wide, 16-px patches
SIZE_PX = 64


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder (split/class/image) of three easily told colours, 32 px, 24 training and 4 test images each."""
    root, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 4)):
        for name, colour in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = rng.normal(0, 40, (32, 32, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def toy_checkpoint(toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with trained gates and everything the export asks for beside it."""
    from models import evaluate, train

    root = tmp_path_factory.mktemp("runs")
    shared = ["--data", str(toy_images), "--batch-size", "16", "--holdout-ratio", "0.17", "--shift-px", "1"]
    dense = ["--stage", "dense", "--out", str(root / "dense"), "--model", MODEL, "--image-size", str(SIZE_PX)]
    assert train.main([*shared, *dense, "--epochs", "4", "--learning-rate", "2e-3"]) == 0
    gates = ["--stage", "gates", "--out", str(root / "gates"), "--init", str(root / "dense")]
    assert train.main([*shared, *gates, "--epochs", "2", "--learning-rate", "1e-2", "--cosine-threshold", "0.997"]) == 0
    folder = root / "gates"
    measure = ["--checkpoint", str(folder), "--data", str(toy_images), "--thresholds", "0,0.25,0.5,0.75,1"]
    assert evaluate.main([*measure, "--out", str(folder / "evaluation.json")]) == 0
    held = [*measure, "--split", "heldout", "--holdout-ratio", "0.17"]
    assert evaluate.main([*held, "--out", str(folder / "calibration.json")]) == 0
    assert evaluate.main([*held, "--image-size", "32", "--out", str(folder / "calibration-32.json")]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(toy_checkpoint: Path, toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified bundle named `tiny`, with the input sizes 64 (full) and 32 px, made by `python -m export`."""
    from export.__main__ import main

    out = tmp_path_factory.mktemp("zoo") / "tiny"
    options = ["--checkpoint", str(toy_checkpoint), "--out", str(out), "--images", str(toy_images)]
    assert main([*options, "--sizes", "32", "--origin", "Random numbers."]) == 0
    return out
