"""Write a model bundle: graphs, manifest, parity and card around one checkpoint; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from export.calibrate import calibration_points, choose_presets
from export.graph import INPUTS, OUTPUTS, ServedViT, example_inputs
from export.model_card import render
from export.parity import Parity, compare, onnx_infer
from export.to_onnx import ExportError, save, to_onnx
from models import checkpoint
from models.checkpoint import at_size
from models.data import LabelledImages
from models.macs import shape_of
from models.pruned_vit import PrunedViT
from service.artifact import (
    MANIFEST,
    Evaluation,
    FileDigest,
    Graph,
    LayerMacs,
    Manifest,
    Origin,
    Preprocessing,
    load_bundle,
)
from service.engine import OnnxEngine

MASKED = "masked.onnx"
EVALUATION = "evaluation.json"
TRAINING = "train.json"
PARITY = "parity.json"
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """A trained checkpoint and what was measured of it."""

    folder: Path
    model: PrunedViT
    evaluation: dict[str, Any]  # `models.evaluate` on the test images
    calibration: dict[int, dict[str, Any]]  # input size -> `models.evaluate` on held-out training images
    training: dict[str, Any]  # `models.train`'s summary
    origin: Origin

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The input sizes to serve, the full one first."""
        return tuple(sorted(self.calibration, reverse=True))


def calibration_file(size_px: int, full_px: int) -> str:
    """Where a size's calibration lies in a checkpoint folder."""
    return "calibration.json" if size_px == full_px else f"calibration-{size_px}.json"


def read_source(folder: Path, sizes_px: tuple[int, ...], origin: Origin | None) -> Source:
    """Read a checkpoint folder (or a bundle, to write it anew).

    Raises:
        CheckpointError, ExportError: something is missing; the message names the command that makes it.
    """
    model = checkpoint.load(folder)
    full_px = model.config.image_size_px
    if not model.config.gated_layers:
        raise ExportError(f"{folder} has no gates: train them with `python -m models.train --stage gates`")
    if origin is None:
        origin = Origin.model_validate(_measured(folder / MANIFEST, "give --origin and --licence")["origin"])
    calibration = {}
    for size_px in (full_px, *(size for size in sizes_px if size != full_px)):
        file = folder / calibration_file(size_px, full_px)
        calibration[size_px] = _measured(
            file, f"python -m models.evaluate --checkpoint {folder} --split heldout --image-size {size_px} --out {file}"
        )
    evaluation = _measured(
        folder / EVALUATION, f"python -m models.evaluate --checkpoint {folder} --out {folder / EVALUATION}"
    )
    training = _measured(folder / TRAINING, "train with `python -m models.train`")
    return Source(folder, model, evaluation, calibration, training, origin)


def write_bundle(source: Source, out: Path, images: LabelledImages) -> dict[str, Parity]:
    """Write the bundle `out` and return each graph's parity; an existing bundle is replaced only when parity holds.

    Raises:
        ExportError: a graph can't be written, or parity doesn't hold.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, EVALUATION, TRAINING, *_calibrations(source)):
            shutil.copyfile(source.folder / name, folder / name)
        models = {size_px: at_size(source.model, size_px) for size_px in source.sizes_px}
        for size_px, model in models.items():
            _write_graph(model, "sparse", folder / graph_file(size_px, source))
        _write_graph(source.model, "masked", folder / MASKED)
        _write_manifest(source, models, folder)
        parities = _parities(models, folder, images)
        figures = {name: parity.as_json() for name, parity in parities.items()}
        (folder / PARITY).write_text(json.dumps(figures, indent=1) + "\n")
        for name, parity in parities.items():
            if not parity.holds:
                raise ExportError(f"{name} differs from the trained model beyond tolerance, nothing written: {parity}")
        manifest = _write_manifest(source, models, folder)
        (folder / CARD).write_text(render(manifest, source.training, source.evaluation, figures))
        _write_manifest(source, models, folder)
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST):  # the manifest last
            file.replace(out / file.name)
    return parities


def graph_file(size_px: int, source: Source) -> str:
    """The contract's file name for a size's sparse graph."""
    return "model.onnx" if size_px == source.model.config.image_size_px else f"model-{size_px}.onnx"


def image_array(images: LabelledImages, size_px: int) -> NDArray[np.uint8]:
    """All images as one array (n, size_px, size_px, 3)."""
    resized = LabelledImages(images.rows, images.image_column, images.label_column, images.labels, size_px)
    return np.stack([resized[i][0].numpy() for i in range(len(resized))])


def _calibrations(source: Source) -> list[str]:
    return [calibration_file(size_px, source.sizes_px[0]) for size_px in source.sizes_px]


def _write_graph(model: PrunedViT, execution: Literal["masked", "sparse"], file: Path) -> None:
    module: nn.Module = ServedViT(model, execution).eval()
    save(to_onnx(module, example_inputs(model), (INPUTS, OUTPUTS), file.parent / checkpoint.WEIGHTS), file)


def _parities(models: dict[int, PrunedViT], folder: Path, images: LabelledImages) -> dict[str, Parity]:
    bundle = load_bundle(folder)
    engine = OnnxEngine(bundle, threads=0, providers=["CPUExecutionProvider"])
    found = {
        graph.file: compare(models[graph.size_px], engine.infer, image_array(images, graph.size_px))
        for graph in bundle.manifest.graphs
    }
    full = bundle.manifest.full.size_px
    found[MASKED] = compare(models[full], onnx_infer(folder / MASKED), image_array(images, full))
    return found


def _write_manifest(source: Source, models: dict[int, PrunedViT], folder: Path) -> Manifest:
    config, full = source.model.config, shape_of(source.model)
    digests = {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}
    served = "".join(digests[name].sha256 for name in sorted(digests) if name.endswith((".onnx", ".safetensors")))
    graphs, points = [], []
    for size_px, model in models.items():
        shape = shape_of(model)
        graphs.append(
            Graph(
                file=graph_file(size_px, source),
                size_px=size_px,
                patches=shape.patches,
                dense_macs=shape.dense,
                fixed_macs=shape.fixed,
                layer_macs=tuple(LayerMacs(**asdict(shape.layer(i))) for i in range(shape.layers)),
            )
        )
        points += calibration_points(source.calibration[size_px]["rows"], size_px, shape.dense, full.dense)
    dense = next(row for row in source.evaluation["rows"] if row["threshold"] == 0)
    manifest = Manifest(
        schema_version=1,
        name=folder.name,
        version=hashlib.sha256(served.encode()).hexdigest()[:12],
        architecture=config.architecture,
        attention=config.attention,
        labels=config.labels,
        preprocessing=Preprocessing(interpolation="bicubic", mean=config.mean, std=config.std),
        layers=full.layers,
        gated_layers=config.gated_layers,
        graphs=tuple(graphs),
        masked_graph=MASKED,
        presets=choose_presets(points),
        calibration=tuple(points),
        evaluation=Evaluation(
            data=source.evaluation["data"],
            images=source.evaluation["images"],
            top1=dense["top1"],
            top5=dense["top5"],
            runtime=f"torch {source.evaluation['torch']}, float32, sparse path, threshold 0",
        ),
        origin=source.origin,
        files=digests,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _digest(file: Path) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(file.read_bytes()).hexdigest(), size_bytes=file.stat().st_size)


def _measured(file: Path, how: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise ExportError(f"{file} is missing: {how}") from None
    except ValueError as error:
        raise ExportError(f"{file} isn't JSON ({error}): {how}") from None
    return content
