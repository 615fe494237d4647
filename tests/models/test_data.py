"""One loader for a parquet folder in the hub's schema and for an image folder; wrong folders get a clear line."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from models.data import Augment, DataError, epoch_order, load_images, split_holdout
from tests.conftest import CLASSES


def test_an_image_folder_gives_labelled_pixels(toy_images: Path) -> None:
    images = load_images(str(toy_images), "test", 48)
    assert images.labels == tuple(CLASSES)
    assert len(images) == 12
    pixels, labels = next(iter(images.batches(12)))
    assert pixels.shape == (12, 48, 48, 3)
    for row, label in zip(pixels, labels, strict=True):
        expected = np.array(CLASSES[images.labels[label]])
        assert np.abs(row.float().mean((0, 1)).numpy() - expected).max() < 30


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
    with pytest.raises(DataError, match=r"image 2 can't be decoded .*: remove or replace it"):
        list(images.batches(1))


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
    with pytest.raises(DataError, match="can't hold out the share 1 of 72"):
        split_holdout(images, 1)


def test_augmentation_depends_on_seed_epoch_and_image_only() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    draw = [np.asarray(Augment(0, epoch, 2)(image, 5)) for epoch in (0, 0, 1, 2, 3)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert any((draw[0] != other).any() for other in draw[2:])
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 0, 1))
