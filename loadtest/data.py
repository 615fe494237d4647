"""Labelled images as encoded bytes: the bundled 500, parquet in the hub's schema, an image folder, or a hub name.

Nothing is decoded unless another format or size is asked for, and then before the run. It knows no HTTP.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BUNDLED = Path(__file__).parent / "images"
LABEL_COLUMNS = ("fine_label", "label", "labels")  # in order of preference: CIFAR-100 has fine and coarse labels
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MAGIC = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))


class DataError(ValueError):
    """Data that can't be read as labelled images; the message says what to give instead."""


@dataclass(frozen=True)
class LabelledImages:
    """Encoded images and the name of each one's class."""

    source: str  # what results call it
    encoded: tuple[bytes, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.encoded)


def load(source: str = "", limit: int = 500, seed: int = 0) -> LabelledImages:
    """Up to `limit` images of a source's test split, as many of each class as there are to be had.

    Args:
        source: a parquet file or a folder of them, an image folder ([test/]class/image) or a hub name; empty takes the
            bundled CIFAR-100 images.
        limit: images to keep, 0 for all.
        seed: which ones.

    Raises:
        DataError: nothing there, or nothing that can be read as labelled images.
    """
    local = Path(source).expanduser() if source else BUNDLED
    if local.exists():
        name = "500 CIFAR-100 test images (bundled)" if not source else local.resolve().name
        pairs = list(_read_folder(local) if _has_classes(local) else _read_parquet(_parquet_files(local)))
    elif source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise DataError(f"{source} isn't there: give a parquet file or folder, an image folder or a hub name")
    else:
        name, pairs = source, list(_read_parquet(_download(source)))
    if not pairs:
        raise DataError(f"{source or local} has no labelled images")
    chosen = stratified([label for _, label in pairs], limit or len(pairs), seed)
    return LabelledImages(name, tuple(pairs[i][0] for i in chosen), tuple(pairs[i][1] for i in chosen))


def stratified(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """Indices of up to `count` items, class by class in turn, which of a class drawn by the seed; sorted."""
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    seen: dict[str, int] = {}
    rank = []
    for index in order:
        rank.append((seen.setdefault(labels[index], 0), index))
        seen[labels[index]] += 1
    rank.sort(key=lambda item: item[0])  # stable: the first of every class, then the second of every class
    return sorted(index for _, index in rank[:count])


def encode(data: bytes, kind: str, side_px: int | None) -> bytes:
    """The image in another format (`jpeg`, `png`, `webp` or `original`) and enlarged or shrunk to a longer side.

    Raises:
        DataError: the bytes are no image, or the format isn't one of these.
    """
    if kind == "original" and side_px is None:
        return data
    wanted = image_format(data) if kind == "original" else kind
    if wanted not in FORMATS:
        raise DataError(f"unknown image format {wanted!r}: original, {', '.join(FORMATS)}")
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise DataError(f"an image can't be decoded: {error}") from None
    if side_px is not None:
        scale = side_px / max(image.size)
        w, h = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((w, h), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, FORMATS[wanted], **({"quality": 90} if wanted == "jpeg" else {}))
    return stream.getvalue()


def image_format(data: bytes) -> str:
    """`jpeg`, `png` or `webp` by the first bytes; anything else is `octet-stream`."""
    return next((name for magic, name in _MAGIC if data.startswith(magic)), "octet-stream")


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and not list(folder.rglob("*.parquet"))


def _read_folder(folder: Path) -> Iterator[tuple[bytes, str]]:
    for split in ("test", "validation", "val"):
        if (folder / split).is_dir():
            folder = folder / split
            break
    for file in sorted(folder.glob("*/*")):
        if file.suffix.lower() in SUFFIXES:
            yield file.read_bytes(), file.parent.name


def _parquet_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    for split in ("test", "validation", "val"):
        if chosen := [file for file in files if file.name.startswith(split)]:
            return chosen
    return files


def _read_parquet(files: Sequence[Path]) -> Iterator[tuple[bytes, str]]:
    import pyarrow
    import pyarrow.parquet as parquet

    for file in files:
        try:
            table = parquet.read_table(file)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DataError(f"{file.name} can't be read as parquet: {str(error).splitlines()[0]}") from None
        features = _features(table.schema.metadata or {})
        images = [name for name, kind in features.items() if kind.get("_type") == "Image"]
        known = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
        labels = [name for name in LABEL_COLUMNS if name in known] + known
        if not images or not labels:
            raise DataError(f"{file.name} needs an image column and a class label column, as data sets on the hub have")
        names = features[labels[0]]["names"]
        for image, label in zip(table[images[0]].to_pylist(), table[labels[0]].to_pylist(), strict=True):
            yield image["bytes"], str(names[label])


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    info = json.loads(metadata.get(b"huggingface", b"{}"))
    found: dict[str, dict[str, Any]] = info.get("info", {}).get("features", {})
    return {name: kind for name, kind in found.items() if isinstance(kind, dict)}


def _download(name: str) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{split}*.parquet" for split in ("test", "validation", "val")]
    try:
        folder = snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DataError(f"{name} can't be had from the hub: {str(error).splitlines()[0]}") from None
    return _parquet_files(Path(folder))
