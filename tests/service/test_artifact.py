from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.artifact import load_bundle
from service.errors import BundleError
from tests.fakes import manifest_document, write_bundle


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_bundle_loads(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path))
    assert bundle.manifest.name == "fake"
    assert bundle.manifest.sizes_px == (28, 14)
    assert bundle.manifest.graph(14).file == "model-14.onnx"


def test_a_missing_folder_names_it_and_the_mend(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in message
    assert "make export" in message
    assert "set SKIPVIT_MODEL_REPOSITORY" in message
    write_bundle(tmp_path)
    assert "SKIPVIT_DEFAULT_MODEL may be fake" in refusal(tmp_path / "nothing")


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    (path / "manifest.json").unlink()
    assert "manifest.json is missing" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_a_manifest_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = write_bundle(tmp_path)
    (path / "manifest.json").write_bytes(content)
    assert "manifest.json" in refusal(path)


@pytest.mark.parametrize("version", [1, 0, "2", None])
def test_another_schema_version_is_refused_by_number(tmp_path: Path, version: object) -> None:
    path = write_bundle(tmp_path)
    edit(path, lambda document: document.update(schema_version=version))
    assert "schema_version" in refusal(path)


@pytest.mark.parametrize("field", sorted(manifest_document()))
def test_each_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = write_bundle(tmp_path)
    edit(path, lambda document: document.pop(field))
    assert field in refusal(path)


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    edit(path, lambda document: document.update(surprise=1))
    assert "surprise" in refusal(path)


def test_a_renamed_folder_is_refused(tmp_path: Path) -> None:
    assert "'other'" in refusal(write_bundle(tmp_path).rename(tmp_path / "other"))


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "masked.onnx"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_bundle(tmp_path)
    (path / name).unlink()
    assert name in refusal(path)


def test_a_file_cut_short_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    (path / "weights.safetensors").write_bytes(b"c")
    message = refusal(path)
    assert "weights.safetensors: 1 bytes" in message


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes().swapcase())
    assert "sha256 differs" in refusal(path)


def test_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    edit(path, lambda document: document["files"].update({"../secret": document["files"]["model.onnx"]}))
    assert "not a plain file name" in refusal(path)


LOOK = {"size_px": 14, "again_px": 28, "sure": 0.5, "looked_again": 0.2, "macs_ratio": 0.6, "accuracy": 0.9}


@pytest.mark.parametrize(
    "change",
    [
        {"dense": {"float32": "anysize-dense.onnx", "int8": "model.onnx"}},
        {"gated_layers": [99]},
        {"gated_layers": []},
        {"graphs": []},
        {"graphs": manifest_document()["graphs"][::-1]},
        {"second_looks": [{**LOOK, "again_px": 99}]},
        {"second_looks": [{**LOOK, "size_px": 28}]},
        {"layers": 5},
        {"masked_graph": "absent.onnx"},
        {"presets": {"full": {"size_px": 99, "threshold": 0.0}}},
        {"presets": {"fast": {"size_px": 28, "threshold": 0.0}}},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_bundle(tmp_path)
    edit(path, lambda document: document.update(change))
    assert "manifest.json" in refusal(path)
