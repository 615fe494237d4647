"""From data to a served model of one's own: what the README says, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from service.artifact import load_bundle
from tests.test_readme import PYTHON, ROOT


@pytest.mark.timeout(900)  # it trains, exports, and times everybody
def test_the_training_line_runs_as_written(toy_images: Path, tmp_path: Path) -> None:
    """From data to a bundle of one's own, by the README's commands, with DATA, MODEL and BACKBONE set to toys."""
    save_file(timm.create_model("test_vit", img_size=160).state_dict(), tmp_path / "backbone.safetensors")
    toys = {"DATA": str(toy_images), "MODEL": "test_vit", "BACKBONE": "backbone.safetensors", "SIZES": "112,128"}
    environment = os.environ | toys | {"PYTHONPATH": str(ROOT)}
    line = [command for command in PYTHON if "$DATA" in command]
    assert len(line) >= 5
    for command in line:
        script = command.replace("python", sys.executable, 1)
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    bundle = load_bundle(tmp_path / "models" / "zoo" / "my-model")
    assert bundle.manifest.sizes_px == (112, 128)  # a size above the model's own is served, and isn't the full one
    assert (bundle.manifest.full.file, bundle.manifest.graph(128).file) == ("model.onnx", "model-128.onnx")
    assert json.loads((bundle.path / "parity.json").read_text())["anysize.onnx, 128 px"]["holds"]
