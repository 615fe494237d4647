"""Write a model bundle: graphs, manifest, parity and card around one checkpoint; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from onnx import ModelProto
from torch import Tensor, nn

from export.calibrate import PACKING, calibration_points, choose_presets, dense_row, second_look_points
from export.graph import INPUTS, OUTPUTS, AnySizeViT, ServedViT, example_inputs, without_gates
from export.int8 import RANGES, check_precision, observe_all, write_int8
from export.model_card import render
from export.parity import Parity, compare, image_array, onnx_infer
from export.source import CALIBRATION, EVALUATION, LOWER, PRECISION, PRECISIONS, RESULTS, Source
from export.to_onnx import ExportError, externalise, halved, in_precision, save, to_onnx, trace
from models import checkpoint
from models.checkpoint import at_size
from models.data import LabelledImages
from models.macs import shape_of
from models.pruned_vit import PrunedViT
from service.artifact import (
    FULL_GRAPH,
    MANIFEST,
    SCHEMA_VERSION,
    Evaluation,
    FileDigest,
    Graph,
    LayerMacs,
    Manifest,
    PrecisionPoint,
    Preprocessing,
    load_bundle,
    verify_file,
)
from service.cpu import usable_cpus
from service.errors import BundleError
from service.onnx_engine import OnnxEngine

MASKED = "masked.onnx"
ANY_SIZE = "anysize.onnx"
ANY_SIZE_DENSE = "anysize-dense.onnx"  # for threshold 0
PARITY = "parity.json"
FIGURES = "figures"
CARD = "README.md"


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
    with _beside(out) as folder:
        _copy_measured(source, folder)
        models = _sized(source)
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
        _describe(source, models, folder)
        _replace(folder, out)
    return parities


def keep_graphs(source: Source, out: Path) -> dict[str, Parity]:
    """Write the bundle `out` with the graphs of the bundle that `source` is, and what was measured of them since.

    Returns no parity: none was measured.

    Raises:
        BundleError: `source` is no bundle, or a graph or the weights aren't what its manifest says.
    """
    with _beside(out) as folder:
        _copy_measured(source, folder)
        for name in _verified_graphs(source.folder):
            shutil.copyfile(source.folder / name, folder / name)
        _describe(source, _sized(source), folder)
        _replace(folder, out)
    return {}


def _verified_graphs(folder: Path) -> list[str]:
    """The graphs of a bundle, of whose other files some may have been measured anew, and what belongs to them."""
    mend = "write the graphs anew, without --keep-graphs"
    try:
        files = {
            name: FileDigest(**each) for name, each in json.loads((folder / MANIFEST).read_text())["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST} doesn't name the graphs to keep ({error!r}): {mend}") from None
    own = [name for name in files if name.endswith(".onnx") or name in (RANGES, PARITY)]
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, *own):
        if name not in files:
            raise BundleError(f"{folder / MANIFEST} has no digest for {name}: {mend}")
        verify_file(folder / name, files[name], record=MANIFEST, mend=mend)
    return own


def _sized(source: Source) -> dict[int, PrunedViT]:
    return {size_px: at_size(source.model, size_px) for size_px in source.sizes_px}


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """An empty folder of the same name on the same disk, which is gone afterwards."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        yield folder


def _describe(source: Source, models: dict[int, PrunedViT], folder: Path) -> None:
    """Write card and manifest of the graphs that are there."""
    manifest = _write_manifest(source, models, folder)
    proof = json.loads((folder / PARITY).read_text())
    figures = [file.name for file in (folder / FIGURES).glob("*.png")]
    drawn = {file.name: json.loads(file.read_text()) for file in (folder / FIGURES).glob("*.json")}
    card = render(manifest, source.training, source.evaluation, proof, source.results, figures, drawn)
    (folder / CARD).write_text(card)
    _write_manifest(source, models, folder)  # with the card's digest


def _replace(folder: Path, out: Path) -> None:
    """Move a whole bundle to where it belongs."""
    out.mkdir(exist_ok=True)
    graphs = [file.name for file in out.glob("*.onnx") if not (folder / file.name).exists()]
    for name in (RESULTS, RANGES, *map(PRECISION.format, LOWER), *graphs):
        (out / name).unlink(missing_ok=True)  # an older model's would be taken for this one's
    shutil.rmtree(out / FIGURES, ignore_errors=True)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST):  # the manifest last
        file.replace(out / file.name)


def graph_file(size_px: int, source: Source) -> str:
    """The contract's file name for a size's sparse graph."""
    return FULL_GRAPH if size_px == source.model.config.image_size_px else f"model-{size_px}.onnx"


def _copy_measured(source: Source, folder: Path) -> None:
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, EVALUATION, CALIBRATION, checkpoint.TRAINING):
        shutil.copyfile(source.folder / name, folder / name)
    measured = [RESULTS] if source.results else []
    for name in (*measured, *map(PRECISION.format, source.precisions)):
        shutil.copyfile(source.folder / name, folder / name)
    if (source.folder / FIGURES).is_dir():  # with no digest: the manifest knows plain file names alone
        shutil.copytree(source.folder / FIGURES, folder / FIGURES)


def _write_graph(module: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> None:
    save(to_onnx(module.eval(), inputs, (INPUTS, OUTPUTS), file.parent / checkpoint.WEIGHTS), file)


def traced_px(models: Mapping[int, PrunedViT]) -> int:
    """The size to trace at: the smallest of more than one patch, for a trace takes a dimension of 1 for a constant."""
    return min((size_px for size_px, model in models.items() if model.patches > 1), default=max(models))


def write_served(models: dict[int, PrunedViT], file: Path) -> None:
    """A graph that is served, for all sizes, in float32 and float16."""
    weights, model = file.parent / checkpoint.WEIGHTS, models[traced_px(models)]

    def traced(*, fused: bool) -> ModelProto:
        inputs, names = example_inputs(model), (INPUTS, OUTPUTS)
        if len(models) == 1:
            return trace(ServedViT(model, "sparse", fused=fused).eval(), inputs, names)
        any_size = AnySizeViT(models, fused=fused)
        return trace(any_size.eval(), inputs, names, any_size.side)

    half = in_precision(file.name, "float16")  # for GPUs and TensorRT, which knows standard operators alone
    save(externalise(halved(traced(fused=False)), weights), file.with_name(half))
    save(externalise(traced(fused=True), weights), file)


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
        presets=choose_presets(source.calibration["rows"], source.calibration["second_looks"], config.image_size_px),
        calibration=calibration_points(source.calibration["rows"]),
        packing=PACKING,
        second_looks=second_look_points(source.calibration["second_looks"]),
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


def _digest(file: Path) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(file.read_bytes()).hexdigest(), size_bytes=file.stat().st_size)
