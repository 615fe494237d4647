"""Labelled images from every source."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from loadtest import data
from loadtest.data import DataError, encode, image_format, load, stratified

ZOO = Path(__file__).parents[2] / "models" / "zoo" / "cifar100-vits14"


def test_the_bundled_images_are_five_of_each_class_that_the_bundled_model_knows() -> None:
    images = load()
    assert len(images) == 500
    assert set(Counter(images.labels).values()) == {5}
    assert set(images.labels) == set(json.loads((ZOO / "manifest.json").read_text())["labels"])
    assert {image_format(item) for item in images.encoded} == {"png"}
    assert {Image.open(io.BytesIO(item)).size for item in images.encoded} == {(32, 32)}


def test_a_few_are_as_many_of_each_class() -> None:
    images = load("", limit=200, seed=3)
    assert set(Counter(images.labels).values()) == {2}
    assert images.encoded != load("", limit=200, seed=4).encoded
    assert images == load("", limit=200, seed=3)
    assert stratified(["a"] * 5 + ["b"], 3, 0)[-1] == 5


def test_an_image_folder_is_read_with_and_without_splits(images: Path) -> None:
    assert load(str(images)).encoded == load(str(images / "test")).encoded
    assert Counter(load(str(images)).labels) == {"ant": 3, "bee": 3, "cat": 3, "dog": 3}


def test_parquet_is_read_by_its_schema_and_its_test_split(tmp_path: Path) -> None:
    names = {"img": {"_type": "Image"}, "fine_label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    names["coarse_label"] = {"_type": "ClassLabel", "names": ["z"]}
    for split, label in (("train", 0), ("test", 1)):
        columns = {"img": [{"bytes": b"\x89PNG", "path": None}], "fine_label": [label], "coarse_label": [0]}
        metadata = {b"huggingface": json.dumps({"info": {"features": names}}).encode()}
        parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / f"{split}-0.parquet")
    assert load(str(tmp_path)).labels == ("y",)
    assert load(str(tmp_path / "train-0.parquet")).labels == ("x",)


def test_what_holds_no_labelled_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="isn't there"):
        load("./nowhere")
    with pytest.raises(DataError, match="no labelled images"):
        load(str(tmp_path))
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="can't be read as parquet"):
        load(str(tmp_path))
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="image column"):
        load(str(tmp_path))


@pytest.mark.parametrize(("kind", "magic"), [("jpeg", "jpeg"), ("webp", "webp"), ("original", "png")])
def test_images_are_encoded_anew_at_another_size(images: Path, kind: str, magic: str) -> None:
    changed = encode(load(str(images)).encoded[0], kind, 64)
    assert image_format(changed) == magic
    assert Image.open(io.BytesIO(changed)).size == (64, 64)


def test_what_needs_no_change_is_sent_as_it_is(images: Path) -> None:
    original = load(str(images)).encoded[0]
    assert encode(original, "original", None) is original
    with pytest.raises(DataError, match="can't be decoded"):
        data.encode(b"noise", "png", None)
