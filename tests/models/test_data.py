"""One loader for a parquet folder in the hub's schema and for an image folder; wrong folders get a clear line."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from models import data
from models.data import DataError, decode, digest, epoch_order, held_out, load_images, source_size, split_holdout
from tests.conftest import CLASSES
from tests.images import encode


def test_an_image_folder_gives_labelled_pixels(toy_images: Path) -> None:
    images = load_images(str(toy_images), "test", 48)
    assert images.labels == tuple(CLASSES)
    assert len(images) == 12
    pixels, labels = next(iter(images.batches(12)))
    assert pixels.shape == (12, 48, 48, 3)
    for row, label in zip(pixels, labels, strict=True):
        expected = 0.75 * 128 + 0.25 * np.array(CLASSES[images.labels[label]])  # a quadrant of its colour on grey
        assert np.abs(row.float().mean((0, 1)).numpy() - expected).max() < 10


def test_a_parquet_folder_in_the_hubs_schema_prefers_the_fine_label(tmp_path: Path) -> None:
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=["cat", "dog"]),
        coarse_label=datasets.ClassLabel(names=["pet"]),
    )
    rows = {
        "img": [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")],
        "fine_label": [1, 0],
        "coarse_label": [0, 0],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    images = load_images(str(tmp_path), "train", 32)
    assert images.labels == ("cat", "dog")
    assert images[0][1] == 1
    assert images[0][0][0, 0].tolist() == [254, 0, 0] or images[0][0][0, 0].tolist() == [255, 0, 0]
    with pytest.raises(DataError, match="no split 'test', only"):
        load_images(str(tmp_path), "test", 32)


def test_a_wrong_folder_gets_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder: give a folder of parquet files, an image folder or a hub name"):
        load_images(str(tmp_path / "nowhere"), "train", 32)
    with pytest.raises(DataError, match="can't be read as a data set"):
        load_images(str(tmp_path), "train", 32)
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="needs an image column and a class label column"):
        load_images(str(tmp_path), "train", 32)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "0.png")
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"no image")
    images = load_images(str(tmp_path), "train", 8)
    with pytest.raises(DataError, match=r"train/b/1.png can't be decoded .*: remove or replace it"):
        list(images.batches(1))
    with pytest.raises(DataError, match=r"train/b/1.png can't be decoded"):
        source_size(images.select(np.array([2])), 8)


def test_splits_are_folders_whatever_classes_are_called(tmp_path: Path) -> None:
    """Words such as `test` and `training` in a path are no splits: test images would be trained on."""
    root = tmp_path / "my [test] images"
    names = ["cup", "dev-board", "test tube", "training shoe"]
    for split, count in (("Train", 3), ("Val", 2)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{split} {name} {index}.png")
    for split, count in (("train", 3), ("test", 2)):
        images = load_images(str(root), split, 8)
        assert images.labels == tuple(names)
        assert list(images.rows["label"]) == [label for label in range(4) for _ in range(count)]
    (root / "holdout" / "cup").mkdir(parents=True)
    with pytest.raises(DataError, match=r"'holdout' beside .*: splits are train, test, validation, val"):
        load_images(str(root), "train", 8)


@pytest.mark.filterwarnings("ignore:unclosed file")  # the library's, which fails on it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_table_of_images_that_lacks_a_column_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "0.png")
    (tmp_path / "train" / "metadata.csv").write_text("name,label\n0.png,a\n")
    with pytest.raises(DataError, match="can't be read as a data set"):
        load_images(str(tmp_path), "train", 8)
    gc.collect()


def test_an_image_of_too_many_pixels_is_named(toy_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"train/blue/0.png can't be decoded \(Image size .*: remove or replace it"):
        load_images(str(toy_images), "train", 8).read(0)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (("blue", "green"), "3 for 2: 1 more, such as 'red'"),
        (("blue", "green", "red", "white"), "3 for 4: 1 missing, such as 'white'"),
        (("blue", "green", "white"), "3 for 3: 1 more, such as 'red'; 1 missing, such as 'white'"),
        (("red", "green", "blue"), "3 for 3: the same, in another order"),
    ],
)
def test_how_classes_differ_is_said(wanted: tuple[str, ...], reason: str, toy_images: Path) -> None:
    images = load_images(str(toy_images), "test", 8)
    images.check_classes(("blue", "green", "red"), "the model")
    with pytest.raises(DataError, match=re.escape(f"other classes than the model ({reason})")):
        images.check_classes(wanted, "the model")


def test_what_a_parquet_file_lacks_is_said_by_its_place(tmp_path: Path) -> None:
    good = encode(Image.new("RGB", (8, 8)), "PNG")
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))

    def written(name: str, images: list[Any], labels: list[int | None]) -> str:
        (tmp_path / name).mkdir()
        rows = datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)
        rows.to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
        return str(tmp_path / name)

    images = load_images(written("null", [{"bytes": good}, None], [0, 1]), "train", 8)
    with pytest.raises(DataError, match=r"image 1 of 2, of label 1, can't be decoded \(there is none\)"):
        list(images.batches(1))
    with pytest.raises(DataError, match="1 of its 2 train images have no label"):
        load_images(written("unlabelled", [{"bytes": good}] * 2, [0, -1]), "train", 8)


def test_some_rows_are_of_all_classes_where_they_lie_by_class(toy_images: Path) -> None:
    images = load_images(str(toy_images), "test", 32)
    some = images.spread(len(images.labels))
    assert sorted(some.rows[some.label_column]) == list(range(len(images.labels)))
    assert len(images.spread(10_000)) == len(images)


def test_held_out_images_are_the_same_in_every_run_and_in_no_training_set(toy_images: Path) -> None:
    images = load_images(str(toy_images), "train", 16)
    training, heldout = split_holdout(images, 0.17)
    again = split_holdout(load_images(str(toy_images), "train", 32), 0.17)[1]
    assert (len(training), len(heldout)) == (60, 12)
    assert [heldout.rows[i]["image"].tobytes() for i in range(12)] == [
        again.rows[i]["image"].tobytes() for i in range(12)
    ]
    seen = {training.rows[i]["image"].tobytes() for i in range(60)}
    assert not seen & {heldout.rows[i]["image"].tobytes() for i in range(12)}
    with pytest.raises(DataError, match="the share 0.001 of 72 training images is none"):
        held_out(images, 0.001, {})
    with pytest.raises(DataError, match="can't hold out the share 1 of 72"):
        split_holdout(images, 1)


def test_a_split_decoded_into_memory_is_the_split(toy_images: Path) -> None:
    images = load_images(str(toy_images), "test", 24)
    decoded = decode(images)
    assert (decoded.pixels.shape, decoded.pixels.dtype, len(decoded)) == ((12, 24, 24, 3), torch.uint8, 12)
    for index in (0, 5, 11):
        pixels, label = images[index]
        assert torch.equal(decoded.pixels[index], pixels)
        assert decoded.labels[index] == label
    order = np.array([7, 2, 9, 0, 4])
    batches = list(decoded.batches(2, order))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), decoded.pixels[order])
    assert torch.equal(torch.cat([labels for _, labels in batches]), decoded.labels[order])


def test_a_split_too_large_for_memory_is_refused_with_its_size(
    toy_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_images(str(toy_images), "test", 24)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 12 * 24 * 24 * 3)
    assert len(decode(images)) == 12
    monkeypatch.setattr(data, "MEMORY_LIMIT", 12 * 24 * 24 * 3 - 1)
    with pytest.raises(DataError, match="12 images of 24 px take 0 GiB: lower --max-images"):
        decode(images)


def test_source_images_are_kept_at_their_own_size_unless_that_is_far_too_large(toy_images: Path) -> None:
    images = load_images(str(toy_images), "test", 64)
    assert source_size(images, 64) == 32  # the toy images' own
    assert source_size(images, 16) == 20  # 1.25 x 16: room for a crop
    assert source_size(images.select(np.array([], np.int64)), 64) == 64


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only() -> None:
    order = epoch_order(50, 0, 0)
    np.testing.assert_array_equal(np.sort(order), np.arange(50))
    np.testing.assert_array_equal(order, epoch_order(50, 0, 0))
    assert not np.array_equal(order, epoch_order(50, 0, 1))
    assert not np.array_equal(order, epoch_order(50, 1, 0))


def test_images_that_training_may_have_seen_are_not_taken_for_held_out_ones(toy_images: Path) -> None:
    images = load_images(str(toy_images), "train", 16)
    kept = split_holdout(images, 0.17)[1]
    training = {"heldout_digest": digest(kept)}
    assert digest(held_out(images, 0.17, training)) == digest(kept)
    assert len(held_out(images, 0.25, {})) == 18  # of a run that didn't say
    with pytest.raises(DataError, match="aren't the images that training held out"):
        held_out(images, 0.25, training)
    with pytest.raises(DataError, match="aren't the images that training held out"):
        held_out(images.select(np.arange(72)[::-1]), 0.17, training)
