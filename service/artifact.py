"""The model bundle: its manifest's schema and its verified load. This file is the contract between export and service.

A bundle is a folder: `manifest.json`, `weights.safetensors`, the sparse graph for all input sizes in each precision,
one for each size alone, the masked reference graph and a model card. Graphs hold no weights: their initializers point
into the weights file. It knows nothing of ONNX Runtime, HTTP or torch.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import BundleError

SCHEMA_VERSION: Final = 5
MANIFEST = "manifest.json"
FULL_GRAPH: Final = "model.onnx"  # the model at its own input size

Ratio = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "float16", "int8"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileDigest(_Frozen):
    """What a file of the bundle must be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Preprocessing(_Frozen):
    """How an image becomes the graph's uint8 input: shorter side to the input size, centre crop, RGB.

    Scaling by 1/255, `mean`, `std` and the layout live inside the graph; they are recorded here for the reader.
    """

    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class LayerMacs(_Frozen):
    """MACs of one layer for `k` kept patches: `constant + per_kept * k + per_kept_squared * k**2`."""

    constant: int = Field(ge=0)
    per_kept: int = Field(ge=0)
    per_kept_squared: int = Field(ge=0)


class Graph(_Frozen):
    """An input size and what it costs there."""

    file: str  # the sparse graph for this size alone, for other runtimes
    size_px: int = Field(gt=0)
    patches: int = Field(gt=0)
    dense_macs: int = Field(gt=0)  # the plain model at this size: no gates, every token computed that anything reads
    timm_forward_macs: int = Field(gt=0)  # timm's own forward: the last layer's unread patches too, same logits
    fixed_macs: int = Field(ge=0)  # outside the layers: patch embedding and head
    layer_macs: tuple[LayerMacs, ...]

    @cached_property
    def macs_terms(self) -> NDArray[np.int64]:
        """`layer_macs` as (3, L): constants, terms for each kept patch, and for its square."""
        return np.array([(m.constant, m.per_kept, m.per_kept_squared) for m in self.layer_macs], np.int64).T


class Spread(_Frozen):
    """Mean and 10th and 90th percentile over images."""

    mean: Ratio
    p10: Ratio
    p90: Ratio


class CalibrationPoint(_Frozen):
    """What one pair of input size and threshold costs and scores on held-out training images."""

    size_px: int
    threshold: Share
    macs_ratio: Spread  # of the dense MACs at the full size
    time_ratio: Ratio  # of the dense model's time at the full size, in batches: MACs and packing, in float32
    skipped_patches: float = Field(ge=0)  # mean over images and gated layers
    keep_per_layer: tuple[Share, ...]  # share of patches computed, every layer of the model
    accuracy: Share


class SecondLookPoint(_Frozen):
    """What two looks cost and score on the same images: a larger input wherever a smaller one isn't sure; threshold 0.

    No gate runs, so they take the dense model's time for their MACs.
    """

    size_px: int  # of the first look
    again_px: int  # of the second
    sure: Share  # least probability of the first label that is enough
    looked_again: Share  # of the images
    macs_ratio: Ratio  # mean, of both looks, of the dense MACs at the full size
    accuracy: Share


class PrecisionPoint(_Frozen):
    """A lower precision beside float32 at one pair of input size and threshold, on the same test images."""

    size_px: int
    threshold: Share
    sure: Share = 0.0  # above 0: two looks
    again_px: int = 0  # input size of the second; 0: the full one
    images: int = Field(gt=0)
    top1: Share
    float32_top1: Share
    same_top1: Share  # of the images: both give the same first label
    same_decisions: Share  # of all decisions on a patch in a gated layer; of two looks, on whether to look again
    macs_ratio: Ratio
    float32_macs_ratio: Ratio


class Preset(_Frozen):
    """A named pair of input size and threshold, and when to look again at the full size."""

    size_px: int
    threshold: Share
    sure: Share = 0.0  # least probability of the first label that is enough; 0: one look


class Evaluation(_Frozen):
    """The dense accuracy and where it was measured; the whole table is in the bundle's `evaluation.json`."""

    data: str
    images: int = Field(gt=0)
    top1: Share
    top5: Share
    runtime: str


class Origin(_Frozen):
    """Where the weights come from and under which terms."""

    licence: str
    weights: str


class Manifest(_Frozen):
    """`manifest.json`."""

    schema_version: Literal[5]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str
    architecture: str  # the timm model name
    attention: Literal["full_context", "kept_only"]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    layers: int = Field(gt=0)
    gated_layers: tuple[int, ...]
    graphs: tuple[Graph, ...] = Field(min_length=1)  # the model's own size, called the full one, first
    served: dict[Precision, str]  # what the engine runs: one sparse graph for all sizes, in each precision there is
    dense: dict[Precision, str]  # the same without gates, for rows at threshold 0; in the same precisions
    masked_graph: str
    presets: dict[Literal["full", "balanced", "economy"], Preset]
    calibration: tuple[CalibrationPoint, ...]
    packing: dict[Precision, Ratio] = {}  # what gates and packing take beside MACs, of the dense model's time at a size
    second_looks: tuple[SecondLookPoint, ...] = ()
    evaluation: Evaluation
    int8: tuple[PrecisionPoint, ...] = ()
    float16: tuple[PrecisionPoint, ...] = ()
    origin: Origin
    files: dict[str, FileDigest]

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        sizes = self.sizes_px
        if len(set(sizes)) != len(sizes) or self.full.file != FULL_GRAPH:
            raise ValueError(f"graphs must have distinct sizes, the one of {FULL_GRAPH} first: {sizes}")
        if any(len(graph.layer_macs) != self.layers for graph in self.graphs):
            raise ValueError(f"every graph needs layer_macs for all {self.layers} layers")
        if not self.gated_layers or not set(self.gated_layers) <= set(range(self.layers)):
            raise ValueError(f"gated_layers must name some of the {self.layers} layers: {self.gated_layers}")
        if "float32" not in self.served:
            raise ValueError("served must name a float32 graph")
        if self.served.keys() != self.dense.keys():
            raise ValueError(f"served has {sorted(self.served)}, dense {sorted(self.dense)}: both need the same")
        for name in (*(g.file for g in self.graphs), *self.served.values(), *self.dense.values(), self.masked_graph):
            if name not in self.files:
                raise ValueError(f"files has no digest for {name}")
        if unknown := {preset.size_px for preset in self.presets.values()} - set(sizes):
            raise ValueError(f"a preset names the size {min(unknown)}, which no graph has")
        return self

    @model_validator(mode="after")
    def _looks_grow(self) -> Manifest:
        for point in self.second_looks:
            if point.again_px not in self.sizes_px or point.again_px <= point.size_px:
                raise ValueError(f"a second look at {point.again_px} px after one at {point.size_px} is none")
        return self

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The input sizes served, the full one first."""
        return tuple(graph.size_px for graph in self.graphs)

    @property
    def full(self) -> Graph:
        """The graph at the full input size, against which every cost is compared."""
        return self.graphs[0]

    @cached_property
    def points(self) -> dict[int, tuple[CalibrationPoint, ...]]:
        """The calibration table by input size, in the order of thresholds."""
        table = sorted(self.calibration, key=lambda point: point.threshold)
        return {px: found for px in self.sizes_px if (found := tuple(p for p in table if p.size_px == px))}

    @cached_property
    def looks(self) -> dict[tuple[int, int], tuple[SecondLookPoint, ...]]:
        """The table of two looks by the input sizes of both, in the order of probabilities."""
        table = sorted(self.second_looks, key=lambda point: (point.size_px, point.again_px, point.sure))
        return {sizes: tuple(found) for sizes, found in groupby(table, key=lambda p: (p.size_px, p.again_px))}

    def graph(self, size_px: int) -> Graph:
        """The graph for an input size; KeyError if the bundle has none."""
        for graph in self.graphs:
            if graph.size_px == size_px:
                return graph
        raise KeyError(size_px)


class Bundle(_Frozen):
    """A folder whose manifest is valid and whose files were verified."""

    path: Path
    manifest: Manifest


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in the folder `path`.

    Raises:
        BundleError: one line that names the file and the mend, for each way a bundle can be broken.
    """
    if not path.is_dir():
        there = sorted(file.parent.name for file in path.parent.glob(f"*/{MANIFEST}"))
        mend = f"SKIPVIT_DEFAULT_MODEL may be {', '.join(there)}" if there else "set SKIPVIT_MODEL_REPOSITORY"
        raise BundleError(f"no model bundle at {path}: {mend}, or build one with `make export`")
    manifest = _read_manifest(path / MANIFEST)
    if manifest.name != path.name:
        raise BundleError(f"{path / MANIFEST}: its name is {manifest.name!r}, its folder's {path.name!r}: rename one")
    for name, digest in manifest.files.items():
        if (path / name).parent != path:
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a plain file name: {path_mend(path)}")
        verify_file(path / name, digest, record=MANIFEST, mend=path_mend(path))
    return Bundle(path=path, manifest=manifest)


def _read_manifest(file: Path) -> Manifest:
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{file} is missing: {path_mend(file.parent)}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} can't be read as JSON ({error}): {path_mend(file.parent)}") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file}: schema_version {version!r} isn't the one this version reads ({SCHEMA_VERSION}): "
            f"{path_mend(file.parent)}"
        )
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{file}: {where}: {first['msg']}: {path_mend(file.parent)}") from None


def verify_file(file: Path, digest: FileDigest, *, record: str, mend: str) -> None:
    """Raise BundleError unless the file is what its digest in `record` says; `mend` ends the message."""
    try:
        if (size := file.stat().st_size) != digest.size_bytes:
            raise BundleError(f"{file}: {size} bytes, {record} says {digest.size_bytes} (cut short?): {mend}")
        with file.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{file} can't be read ({error.strerror}): {mend}") from None
    if actual != digest.sha256:
        raise BundleError(f"{file}: sha256 differs from {record}'s (corrupt or edited): {mend}")


def path_mend(path: Path) -> str:
    """What to do about a broken bundle."""
    return f"restore {path} from version control or build it anew with `make export`"
