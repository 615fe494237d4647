"""Images with labels from a hub-schema parquet folder, an image folder or a hub name: one library reads all three.

It knows no model; an image becomes the model's uint8 input through `models.preprocessing` alone.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
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
from tqdm import tqdm

from models.preprocessing import resize_crop, to_rgb

MEMORY_LIMIT = 16 << 30  # bytes of decoded training images
_LOOKED_AT = 64  # images, for the size of all
SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}  # folders, and their names
LABEL_COLUMNS = ("fine_label", "label", "labels")  # in order of preference: CIFAR-100 has fine and coarse labels


class DataError(ValueError):
    """Data that can't be read as labelled images; the message says what to give instead."""


@dataclass(frozen=True)
class LabelledImages(Dataset[Any]):
    """Rows of one split as (uint8 (size_px, size_px, 3), label) pairs."""

    rows: Any  # datasets.Dataset
    image_column: str
    label_column: str
    labels: tuple[str, ...]
    size_px: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.read(index)
        return torch.from_numpy(resize_crop(to_rgb(image), self.size_px).copy()), label

    def read(self, index: int) -> tuple[Any, int]:
        """A row's image as Pillow has it, and its label; DataError, naming the file, if it can't be decoded."""
        try:
            row = self.rows[index]
            if row[self.image_column] is None:
                raise OSError("there is none")
        except (OSError, Image.DecompressionBombError) as error:  # Pillow's UnidentifiedImageError is an OSError
            raw = self.rows.cast_column(self.image_column, datasets.Image(decode=False))[index][self.image_column] or {}
            name = raw.get("path") or f"image {index} of {len(self)}, of label {self.rows[self.label_column][index]},"
            raise DataError(f"{name} can't be decoded ({error}): remove or replace it") from None
        return row[self.image_column], int(row[self.label_column])

    def check_classes(self, wanted: tuple[str, ...], of: str) -> None:
        """DataError says how the classes differ from those wanted, in order, which are `of` something."""
        if self.labels == wanted:
            return
        odd = [name for name in self.labels if name not in wanted], [name for name in wanted if name not in self.labels]
        words = zip(odd, ("more", "missing"), strict=True)
        parts = [f"{len(names)} {word}, such as {names[0]!r}" for names, word in words if names]
        reason = "; ".join(parts) or "the same, in another order"
        raise DataError(f"the data have other classes than {of} ({len(self.labels)} for {len(wanted)}: {reason})")

    def select(self, indices: NDArray[np.int64]) -> LabelledImages:
        """The given rows, in the given order."""
        return replace(self, rows=self.rows.select(indices))

    def spread(self, count: int) -> LabelledImages:
        """So many rows at most, evenly spread: image folders are sorted by class."""
        count = min(count, len(self))
        return self.select(np.arange(count) * len(self) // max(1, count))

    def batches(
        self, batch_size: int, order: NDArray[np.int64] | None = None, workers: int = 0
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of (uint8 (B, H, W, 3), int64 (B,)), in the given order or as they lie."""
        sampler = None if order is None else list(map(int, order))
        return DataLoader(self, batch_size=batch_size, sampler=sampler, num_workers=workers)


@dataclass(frozen=True)
class Images:
    """A split decoded once, in memory: what training reads, epoch after epoch."""

    pixels: Tensor  # (n, s, s, 3) uint8
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, order: NDArray[np.int64] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (uint8 (B, s, s, 3), int64 (B,)), in the given order or as they lie."""
        rows = torch.from_numpy(np.arange(len(self)) if order is None else order).to(self.labels.device)
        for chosen in rows.split(batch_size) if len(rows) else ():
            yield self.pixels[chosen], self.labels[chosen]

    def digest(self) -> str:
        """Which images these are, by their pixels and labels in order."""
        found = hashlib.blake2b(self.pixels.numpy().data, digest_size=8)
        found.update(self.labels.numpy().data)
        return found.hexdigest()

    def to(self, device: str) -> Images:
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


def decode(images: LabelledImages, workers: int = 0) -> Images:
    """Decode a split into memory, at `images.size_px`.

    Raises:
        DataError: it would take more than MEMORY_LIMIT bytes, or an image can't be decoded.
    """
    needed = len(images) * images.size_px**2 * 3
    if needed > MEMORY_LIMIT:
        raise DataError(f"{len(images)} images of {images.size_px} px take {needed >> 30} GiB: lower --max-images")
    pixels = torch.empty(len(images), images.size_px, images.size_px, 3, dtype=torch.uint8)
    labels, start = torch.empty(len(images), dtype=torch.int64), 0
    for batch, names in tqdm(images.batches(256, workers=workers), desc="decode", leave=False, mininterval=2):
        pixels[start : start + len(names)], labels[start : start + len(names)] = batch, names
        start += len(names)
    return Images(pixels, labels)


def source_size(images: LabelledImages, size_px: int) -> int:
    """The side to keep source images at: their own (the largest of some), if that is smaller than a crop's worth."""
    some = range(0, len(images), max(1, len(images) // _LOOKED_AT))
    own_px = max((min(images.read(index)[0].size) for index in some), default=size_px)
    return min(own_px, round(1.25 * size_px))


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
    if (unlabelled := sum(label is None or label < 0 for label in rows[labels[0]])) > 0:
        raise DataError(f"{source}: {unlabelled} of its {len(rows)} {split} images have no label")
    return LabelledImages(rows, images[0], labels[0], tuple(features[labels[0]].names), size_px)


def _read(source: str, split: str) -> Any:
    local = Path(source).expanduser()
    if (source.startswith((".", "/", "~")) or source.count("/") > 1) and not local.is_dir():
        raise DataError(f"{source} is no folder: give a folder of parquet files, an image folder or a hub name")
    try:
        if parts := _image_folder(local):
            found = datasets.load_dataset("imagefolder", data_files=parts)
        else:
            found = datasets.load_dataset(str(local) if local.is_dir() else source)
    except (DatasetsError, OSError, ValueError, LookupError) as error:  # OSError: no network, no such file
        reason = str(error).splitlines()[0]
        raise DataError(f"{source} can't be read as a data set: {reason}") from None
    for name in (split, *(("validation",) if split == "test" else ())):
        if name in found:
            return found[name]
    raise DataError(f"{source} has no split {split!r}, only {sorted(found)}")


def _image_folder(folder: Path) -> dict[str, str]:
    """The files of each split, as a pattern, where a folder has one for each; none for other data.

    Left to itself the library finds splits by words anywhere in a path: it would take the class `test tube` of the
    training images for test images as well.
    """
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []
    folders = [entry for entry in inside if entry.is_dir()]
    splits = {SPLITS[entry.name.lower()]: entry for entry in folders if entry.name.lower() in SPLITS}
    if not splits or any(next(entry.rglob("*.parquet"), None) for entry in splits.values()):
        return {}
    if other := sorted(entry.name for entry in folders if entry not in splits.values()):
        raise DataError(f"{folder} has the folder {other[0]!r} beside {sorted(splits)}: splits are {', '.join(SPLITS)}")
    return {name: f"{glob.escape(str(entry))}/**" for name, entry in splits.items()}


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


def digest(images: LabelledImages) -> str:
    """Which images of a data set a split has, by their labels in order, however they are encoded."""
    return hashlib.sha256(np.asarray(images.rows[images.label_column], np.int64).tobytes()).hexdigest()[:16]


def held_out(images: LabelledImages, ratio: float, training: Mapping[str, Any]) -> LabelledImages:
    """The training images that a run held out; `training` is its summary.

    Raises:
        DataError: they aren't those: it saw other data, in another order, or held out another share or none.
    """
    found = split_holdout(images, ratio)[1]
    if not len(found):
        raise DataError(f"the share {ratio:g} of {len(images)} training images is none: train with a larger one")
    if training.get("heldout_digest") not in (None, digest(found)):
        raise DataError("these aren't the images that training held out: give the same data and --holdout-ratio")
    return found


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The shuffled order of an epoch, a function of seed and epoch alone."""
    return np.random.default_rng((seed, epoch)).permutation(length)
