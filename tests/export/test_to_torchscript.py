"""TorchScript is written for every size with parity, recorded beside the bundle, and leaves the bundle as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from export import parity
from export.__main__ import main
from service.artifact import load_bundle
from service.torchscript_record import RECORD, TorchScriptRecord

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to write into."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))


def export(source: Path, out: Path, images: Path) -> int:
    return main(["--checkpoint", str(source), "--out", str(out), "--images", str(images), "--format", "torchscript"])


def test_a_bundle_gives_a_file_for_each_size_with_parity_and_a_record(
    bundle_copy: Path, toy_images: Path, capsys: Capture
) -> None:
    before = {file.name: file.read_bytes() for file in bundle_copy.iterdir()}
    assert export(bundle_copy, bundle_copy, toy_images) == 0
    captured = capsys.readouterr()
    assert "Warning" not in captured.err
    parities = json.loads(captured.out.strip().splitlines()[-1])
    assert set(parities) == {"model.pt", "model-32.pt"}
    for figures in parities.values():
        assert figures["holds"]
        assert figures["identical_masks"] == 1
        assert figures["max_difference"] < 1e-4
    record = TorchScriptRecord.model_validate_json((bundle_copy / RECORD).read_bytes())
    assert record.bundle_version == load_bundle(bundle_copy).manifest.version
    assert record.torch == torch.__version__
    assert set(record.files) == set(parities)
    for name, digest in record.files.items():
        assert hashlib.sha256((bundle_copy / name).read_bytes()).hexdigest() == digest.sha256
    after = {file.name: file.read_bytes() for file in bundle_copy.iterdir()}
    assert set(after) - set(before) == {RECORD, *parities}
    assert all(after[name] == content for name, content in before.items())


def test_a_checkpoint_gives_a_file_at_its_own_size_and_no_record(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    out.mkdir()
    (out / RECORD).write_text("of another model")
    assert export(toy_checkpoint, out, toy_images) == 0
    assert {file.name for file in out.iterdir()} == {"model.pt"}


def test_without_parity_nothing_is_written(
    bundle_copy: Path, toy_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(parity, "LOGIT_TOLERANCE", -1.0)  # nothing is as near as that
    before = sorted(bundle_copy.iterdir())
    assert export(bundle_copy, bundle_copy, toy_images) == 1
    assert "model.pt differs from the trained model" in capsys.readouterr().err
    assert sorted(bundle_copy.iterdir()) == before


def test_a_broken_bundle_is_refused_in_one_line(bundle_copy: Path, toy_images: Path, capsys: Capture) -> None:
    (bundle_copy / "model-32.onnx").write_bytes(b"")
    assert export(bundle_copy, bundle_copy, toy_images) == 2
    assert capsys.readouterr().err.startswith(f"export: {bundle_copy / 'model-32.onnx'}: 0 bytes")
