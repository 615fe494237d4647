"""Images with labels from a hub-schema parquet folder, an image folder or a hub name: one library reads all three.

It knows no model; an image becomes the model's uint8 input through `models.preprocessing` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.preprocessing import resize_crop, to_rgb

LABEL_COLUMNS = ("fine_label", "label", "labels")  # in order of preference: CIFAR-100 has fine and coarse labels


class DataError(ValueError):
    """Data that can't be read as labelled images; the message says what to give instead."""


@dataclass(frozen=True)
class Augment:
    """Random flip and shift, drawn from (seed, epoch, image) alone, so that a resumed run sees the same images."""

    seed: int
    epoch: int
    shift_px: int  # in the source image's own pixels

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        pixels = np.asarray(image)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.shift_px:
            top, left = rng.integers(0, 2 * self.shift_px + 1, 2)
            height, width, _ = pixels.shape
            margin = (self.shift_px, self.shift_px)
            padded = np.pad(pixels, (margin, margin, (0, 0)), mode="reflect")
            pixels = padded[top : top + height, left : left + width]
        return Image.fromarray(np.ascontiguousarray(pixels))


@dataclass(frozen=True)
class LabelledImages(Dataset[Any]):
    """Rows of one split as (uint8 (size_px, size_px, 3), label) pairs."""

    rows: Any  # datasets.Dataset
    image_column: str
    label_column: str
    labels: tuple[str, ...]
    size_px: int
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            row = self.rows[index]
        except OSError as error:  # Pillow's UnidentifiedImageError is one
            raise DataError(f"image {index} can't be decoded ({error}): remove or replace it") from None
        image = to_rgb(row[self.image_column])
        if self.augment is not None:
            image = self.augment(image, index)
        return torch.from_numpy(resize_crop(image, self.size_px).copy()), int(row[self.label_column])

    def select(self, indices: NDArray[np.int64]) -> LabelledImages:
        """The given rows, in the given order."""
        return replace(self, rows=self.rows.select(indices))

    def augmented(self, augment: Augment) -> LabelledImages:
        """The same rows, augmented."""
        return replace(self, augment=augment)

    def batches(
        self, batch_size: int, order: NDArray[np.int64] | None = None, workers: int = 0
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of (uint8 (B, H, W, 3), int64 (B,)), in the given order or as they lie."""
        sampler = None if order is None else list(map(int, order))
        return DataLoader(self, batch_size=batch_size, sampler=sampler, num_workers=workers)


def load_images(source: str, split: str, size_px: int) -> LabelledImages:
    """The split `split` of a data source.

    Args:
        source: a folder of parquet files in the hub's schema, an image folder (split/class/image), or a hub name.
        split: `train` or `test`; where a source has no `test`, its `validation` serves.
        size_px: side of the model's input.

    Raises:
        DataError: nothing there, or nothing that can be read as labelled images.
    """
    rows = _read(source, split)
    features = rows.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    known = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = [name for name in LABEL_COLUMNS if name in known] + known
    if not images or not labels:
        raise DataError(f"{source}: needs an image column and a class label column, has {dict(features)}")
    return LabelledImages(rows, images[0], labels[0], tuple(features[labels[0]].names), size_px)


def _read(source: str, split: str) -> Any:
    local = Path(source).expanduser()
    if (source.startswith((".", "/", "~")) or source.count("/") > 1) and not local.is_dir():
        raise DataError(f"{source} is no folder: give a folder of parquet files, an image folder or a hub name")
    try:
        found = datasets.load_dataset(str(local) if local.is_dir() else source)
    except (DatasetsError, OSError, ValueError) as error:  # OSError: no network, no such file
        reason = str(error).splitlines()[0]
        raise DataError(f"{source} can't be read as a data set: {reason}") from None
    for name in (split, *(("validation", "val") if split == "test" else ())):
        if name in found:
            return found[name]
    raise DataError(f"{source} has no split {split!r}, only {sorted(found)}")


def source_name(source: str) -> str:
    """What results call a data source: a folder's own name, without the path to it, or the hub name."""
    local = Path(source).expanduser()
    return local.resolve().name if local.is_dir() else source


def split_holdout(images: LabelledImages, ratio: float) -> tuple[LabelledImages, LabelledImages]:
    """Part a training split into (training, held out): the end of a fixed shuffle, the same in every run.

    Raises:
        DataError: `ratio` isn't in [0, 1), or leaves nothing to train on.
    """
    cut = len(images) - round(len(images) * ratio)
    if not (0 <= ratio < 1 and cut > 0):
        raise DataError(f"can't hold out the share {ratio} of {len(images)} training images")
    order = np.random.default_rng(0).permutation(len(images))
    return images.select(order[:cut]), images.select(order[cut:])


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The shuffled order of an epoch, a function of seed and epoch alone."""
    return np.random.default_rng((seed, epoch)).permutation(length)
