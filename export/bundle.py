"""Write a model bundle: graphs, manifest, parity and card around one checkpoint; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from export.calibrate import calibration_points, choose_presets, dense_row, time_ratios
from export.graph import INPUTS, OUTPUTS, AnySizeViT, ServedViT, example_inputs, without_gates
from export.int8 import RANGES, check_precision, observe_all, write_int8
from export.model_card import render
from export.parity import Parity, compare, image_array, onnx_infer
from export.to_onnx import ExportError, externalise, halved, in_precision, save, to_onnx, trace
from models import checkpoint
from models.checkpoint import at_size
from models.data import LabelledImages
from models.macs import shape_of
from models.pruned_vit import PrunedViT
from service.artifact import (
    MANIFEST,
    SCHEMA_VERSION,
    Evaluation,
    FileDigest,
    Graph,
    LayerMacs,
    Manifest,
    Origin,
    Precision,
    PrecisionPoint,
    Preprocessing,
    load_bundle,
)
from service.cpu import usable_cpus
from service.onnx_engine import OnnxEngine

MASKED = "masked.onnx"
ANY_SIZE = "anysize.onnx"
ANY_SIZE_DENSE = "anysize-dense.onnx"  # for threshold 0
EVALUATION = "evaluation.json"
CALIBRATION = "calibration.json"
TRAINING = "train.json"
PARITY = "parity.json"
RESULTS = "results.json"  # of `models.results`; it and the pictures may be missing
LOWER: tuple[Precision, ...] = ("int8", "float16")
PRECISIONS: tuple[Precision, ...] = ("float32", *LOWER)
PRECISION = "{}-evaluation.json"  # of `export.precision`, for each of LOWER; it may be missing
FIGURES = "figures"
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """A trained checkpoint and what was measured of it."""

    folder: Path
    model: PrunedViT
    evaluation: dict[str, Any]  # `models.evaluate` on the test images
    calibration: dict[str, Any]  # the same on held-out training images, at every size to serve
    training: dict[str, Any]  # `models.train`'s summary
    origin: Origin
    results: dict[str, Any] | None = None  # `models.results`: this checkpoint against its rivals
    ranges: dict[str, Any] | None = None  # of `export.int8`; without them, nor unseen images, there are no int8 graphs
    precisions: dict[Precision, dict[str, Any]] = field(default_factory=dict)  # `export.precision`: beside float32

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The input sizes to serve: those that were calibrated, the full one first."""
        return tuple(sorted({row["size_px"] for row in self.calibration["rows"]}, reverse=True))


def read_source(folder: Path, origin: Origin | None) -> Source:
    """Read a checkpoint folder (or a bundle, to write it anew).

    Raises:
        CheckpointError, ExportError: something is missing; the message names the command that makes it.
        ValueError: nothing was measured at threshold 0 and the model's own size.
    """
    model = checkpoint.load(folder)
    if not model.config.gated_layers:
        raise ExportError(f"{folder} has no gates: train them with `python -m models.train --stage gates`")
    if origin is None:
        origin = Origin.model_validate(_measured(folder / MANIFEST, "give --origin and --licence")["origin"])
    measure = f"python -m models.evaluate --checkpoint {folder} --data DATA --sizes SIZES"
    calibration = _measured(folder / CALIBRATION, f"{measure} --split heldout --out {folder / CALIBRATION}")
    evaluation = _measured(folder / EVALUATION, f"{measure} --out {folder / EVALUATION}")
    training = _measured(folder / TRAINING, "train with `python -m models.train`")
    full_px = model.config.image_size_px
    for measured in (evaluation, calibration):
        dense_row(measured["rows"], full_px)
        time_ratios(measured["rows"])
    results, ranges = (_measured(folder / name, "") if (folder / name).exists() else None for name in (RESULTS, RANGES))
    files: dict[Precision, Path] = {name: folder / PRECISION.format(name) for name in LOWER}
    precisions = {name: _measured(file, "") for name, file in files.items() if file.exists()}
    if results and not _same_model(results, evaluation, full_px):
        raise ExportError(f"{folder / RESULTS} is of another model than {EVALUATION}: `python -m models.results` anew")
    source = Source(folder, model, evaluation, calibration, training, origin, results, ranges, precisions)
    if source.sizes_px[0] > full_px:
        raise ExportError(f"{folder / CALIBRATION} has sizes above the model's own {full_px} px: measure smaller ones")
    return source


def write_bundle(
    source: Source, out: Path, images: LabelledImages, unseen: LabelledImages | None = None
) -> dict[str, Parity]:
    """Write the bundle `out` and return each graph's parity; an existing bundle is replaced only when parity holds.

    Args:
        source: what to write.
        out: the bundle's folder.
        images: a few real ones, to prove parity on.
        unseen: held-out training images, to observe activations on; None takes what was observed before, if anything.

    Raises:
        ExportError: a graph can't be written, or parity doesn't hold.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        _copy_measured(source, folder)
        models = {size_px: at_size(source.model, size_px) for size_px in source.sizes_px}
        for size_px, model in models.items():
            _write_graph(ServedViT(model, "sparse"), example_inputs(model), folder / graph_file(size_px, source))
        _write_graph(ServedViT(source.model, "masked"), example_inputs(source.model), folder / MASKED)
        write_served(models, folder / ANY_SIZE)
        write_served({size_px: without_gates(each) for size_px, each in models.items()}, folder / ANY_SIZE_DENSE)
        if unseen or source.ranges:
            ranges = observe_all(folder / ANY_SIZE, tuple(models), unseen) if unseen else source.ranges or {}
            for name in (ANY_SIZE, ANY_SIZE_DENSE):
                write_int8(folder / name, ranges)
        _write_manifest(source, models, folder)
        parities = _parities(models, folder, images)
        bundle = load_bundle(folder)
        for precision in LOWER:
            if precision in bundle.manifest.served:
                check_precision(bundle, precision, images)
        proof = {name: parity.as_json() for name, parity in parities.items()}
        (folder / PARITY).write_text(json.dumps(proof, indent=1) + "\n")
        for name, parity in parities.items():
            if not parity.holds:
                raise ExportError(f"{name} differs from the trained model beyond tolerance, nothing written: {parity}")
        manifest = _write_manifest(source, models, folder)
        figures = [file.name for file in (folder / FIGURES).glob("*.png")]
        card = render(manifest, source.training, source.evaluation, proof, source.results, figures)
        (folder / CARD).write_text(card)
        _write_manifest(source, models, folder)
        out.mkdir(exist_ok=True)
        graphs = [file.name for file in out.glob("*.onnx") if not (folder / file.name).exists()]
        for name in (RESULTS, RANGES, *map(PRECISION.format, LOWER), *graphs):
            (out / name).unlink(missing_ok=True)  # an older model's would be taken for this one's
        shutil.rmtree(out / FIGURES, ignore_errors=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST):  # the manifest last
            file.replace(out / file.name)
    return parities


def graph_file(size_px: int, source: Source) -> str:
    """The contract's file name for a size's sparse graph."""
    return "model.onnx" if size_px == source.model.config.image_size_px else f"model-{size_px}.onnx"


def _copy_measured(source: Source, folder: Path) -> None:
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, EVALUATION, CALIBRATION, TRAINING):
        shutil.copyfile(source.folder / name, folder / name)
    measured = [RESULTS] if source.results else []
    for name in (*measured, *map(PRECISION.format, source.precisions)):
        shutil.copyfile(source.folder / name, folder / name)
    if (source.folder / FIGURES).is_dir():  # with no digest: the manifest knows plain file names alone
        shutil.copytree(source.folder / FIGURES, folder / FIGURES)


def _write_graph(module: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> None:
    save(to_onnx(module.eval(), inputs, (INPUTS, OUTPUTS), file.parent / checkpoint.WEIGHTS), file)


def write_served(models: dict[int, PrunedViT], file: Path) -> None:
    """A graph that is served, for all sizes, in float32 and float16."""
    weights, model = file.parent / checkpoint.WEIGHTS, models[min(models)]
    if len(models) == 1:
        graph = trace(ServedViT(model, "sparse").eval(), example_inputs(model), (INPUTS, OUTPUTS))
    else:
        any_size = AnySizeViT(models)
        graph = trace(any_size.eval(), example_inputs(model), (INPUTS, OUTPUTS), any_size.side)
    save(externalise(halved(graph), weights), file.with_name(in_precision(file.name, "float16")))
    save(externalise(graph, weights), file)


def _parities(models: dict[int, PrunedViT], folder: Path, images: LabelledImages) -> dict[str, Parity]:
    bundle = load_bundle(folder)
    engine = OnnxEngine(bundle, threads=usable_cpus(), provider="cpu")
    found = {}
    for graph in bundle.manifest.graphs:
        pixels, model = image_array(images, graph.size_px), models[graph.size_px]
        found[f"{ANY_SIZE}, {graph.size_px} px"] = compare(model, engine.infer, pixels)
        found[graph.file] = compare(model, onnx_infer(folder / graph.file), pixels)
    full = bundle.manifest.full.size_px
    found[MASKED] = compare(models[full], onnx_infer(folder / MASKED), image_array(images, full))
    return found


def _write_manifest(source: Source, models: dict[int, PrunedViT], folder: Path) -> Manifest:
    config, full = source.model.config, shape_of(source.model)
    digests = {
        file.name: _digest(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != MANIFEST
    }
    served = "".join(digests[name].sha256 for name in sorted(digests) if name.endswith((".onnx", ".safetensors")))
    graphs = []
    for size_px, model in models.items():
        shape = shape_of(model)
        graphs.append(
            Graph(
                file=graph_file(size_px, source),
                size_px=size_px,
                patches=shape.patches,
                dense_macs=shape.dense,
                timm_forward_macs=shape.timm_forward,
                fixed_macs=shape.fixed,
                layer_macs=tuple(LayerMacs(**asdict(shape.layer(i))) for i in range(shape.layers)),
            )
        )
    dense = dense_row(source.evaluation["rows"], config.image_size_px)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=folder.name,
        version=hashlib.sha256(served.encode()).hexdigest()[:12],
        architecture=config.architecture,
        attention=config.attention,
        labels=config.labels,
        preprocessing=Preprocessing(interpolation="bicubic", mean=config.mean, std=config.std),
        layers=full.layers,
        gated_layers=config.gated_layers,
        graphs=tuple(graphs),
        served={name: file for name in PRECISIONS if (file := in_precision(ANY_SIZE, name)) in digests},
        dense={name: file for name in PRECISIONS if (file := in_precision(ANY_SIZE_DENSE, name)) in digests},
        masked_graph=MASKED,
        presets=choose_presets(source.calibration["rows"], config.image_size_px),
        calibration=calibration_points(source.calibration["rows"]),
        evaluation=Evaluation(
            data=source.evaluation["data"],
            images=source.evaluation["images"],
            top1=dense["top1"],
            top5=dense["top5"],
            runtime=f"{source.evaluation['runtime']}, threshold 0",
        ),
        **{
            precision: tuple(PrecisionPoint.model_validate(row) for row in measured["rows"])
            for precision, measured in source.precisions.items()
        },
        origin=source.origin,
        files=digests,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _same_model(results: dict[str, Any], evaluation: dict[str, Any], full_px: int) -> bool:
    """Whether both measured the same accuracy at threshold 0, to 0.1 points: runtimes may round differently."""
    points = next(run["points"] for run in results["runs"] if run["name"] == "joint")
    found = [dense_row(rows, full_px)["top1"] for rows in (points, evaluation["rows"])]
    return bool(abs(found[0] - found[1]) < 0.0011)


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
