"""Everything that classifies the same images with the same weights: the dense model in several runtimes, and ourselves.

A rival is one function, from uint8 images to logits, and what an image costs it. Dense is the plain model at the
bundle's input sizes, without gates and without what nothing reads in its last layer, exported as the served graphs are
and run in ONNX Runtime with the served engine's options; in int8 it has their scheme and the ranges observed for them.
timm's own forward is there as a plain export gives it, all layers whole, in the same runtime. Token merging is the same
as dense at several numbers of patches merged in each layer. timm's own forward runs in torch, too, as it is and
compiled for each batch size; OpenVINO compiles dense, in standard operators, for each batch size. What isn't installed
is left out, and stderr says so. Ours are the served engine at one input size and threshold, and in two looks: a smaller
size first and a larger one where the first answer isn't sure, as `service.second_look` has it. It knows no clock and no
data set.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn
from tqdm import tqdm

from export.graph import INPUTS, DenseViT, MergedViT, TimmViT, example_inputs
from export.int8 import RANGES
from export.quantise import Range, products, quantise
from export.to_onnx import ExportError, save, to_onnx
from models import checkpoint
from models.backbone import UnsupportedModel
from models.checkpoint import WEIGHTS, at_size
from models.macs import shape_of
from models.merging import merged_macs
from models.preprocessing import normalise
from models.pruned_vit import PrunedViT
from service.artifact import Bundle, Precision
from service.budget import Choice, second_of
from service.execution import CPU, Execution, session_options
from service.macs import used_macs
from service.onnx_engine import OnnxEngine
from service.results import softmax

DENSE, DENSE_INT8, MERGING = "dense", "dense-int8", "merging"
EXPORTED, TIMM, COMPILED, OPENVINO = "timm-onnx", "timm", "timm-compiled", "openvino"
MERGES = 4  # token merging is run at as many numbers of patches merged in each layer

Pixels = NDArray[np.uint8]
_ALIKE = np.zeros((0, 0, 0), np.bool_)


class Answer(NamedTuple):
    """What one batch gave."""

    logits: NDArray[np.float32]  # (B, classes)
    kept: NDArray[np.bool_] = _ALIKE  # (B, L, P); empty where every image costs the same
    kept_again: NDArray[np.bool_] = _ALIKE  # (images that were looked at again, L, P)


@dataclass(frozen=True)
class Rival:
    """One contender at one input size."""

    kind: str  # one of the above; `float32` and `int8` are ours
    name: str  # for a person; unique together with size and threshold
    size_px: int
    macs: Callable[[Answer], float]  # of an image, mean over the batch
    run: Callable[[Pixels], Answer]  # (B, size_px, size_px, 3) RGB
    exact: bool = False  # the same function as our float32 graph at this size and threshold, up to rounding
    threshold: float = 0.0
    sure: float = 0.0  # above 0: two looks
    again_px: int = 0  # input size of the second
    second: Callable[[Answer, Pixels], Answer] | None = None  # from the first answer and the images for the second

    def answer(self, images: Mapping[int, Pixels], rows: NDArray[np.int64]) -> Answer:
        """The answer to some rows of the images, which are there at every size."""
        first = self.run(images[self.size_px][rows])
        return first if self.second is None else self.second(first, images[self.again_px][rows])


def all_rivals(bundle: Bundle, points: Mapping[Precision, Sequence[Choice]], threads: int) -> list[Rival]:
    """Every rival, the dense float32 graph at the full size first; ours at `points`. A minute or more of exports."""
    torch.set_num_threads(threads)
    model, macs = checkpoint.load(bundle.path), bundle.manifest.full.timm_forward_macs
    found = [*exported_rivals(bundle, threads), timm_eager(model, macs), *timm_compiled(model, macs)]
    for precision, chosen in points.items():
        found += ours(bundle, precision, chosen, threads)
    return found


def exported_rivals(bundle: Bundle, threads: int) -> list[Rival]:
    """Those that are graphs made here: dense, in float32 and int8, token merging, OpenVINO."""
    model, full = checkpoint.load(bundle.path), bundle.manifest.full
    found: list[Rival] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(bundle.path / WEIGHTS, folder / WEIGHTS)
        plain: dict[int, tuple[Path, int]] = {}
        for size_px in tqdm(bundle.manifest.sizes_px, desc="exporting dense graphs", leave=False):
            sized = at_size(model, size_px)
            file = _export(DenseViT(sized), sized, folder / f"dense-{size_px}.onnx")
            macs = constant(bundle.manifest.graph(size_px).dense_macs)
            found.append(Rival(DENSE, "ONNX Runtime, dense", size_px, macs, _runs(session(file, threads)), True))
            if (small := dense_int8(bundle, file)) is not None:
                run = _runs(session(small, threads))
                found.append(Rival(DENSE_INT8, "ONNX Runtime, dense int8", size_px, macs, run))
            standard = _export(DenseViT(sized, fused=False), sized, folder / f"plain-{size_px}.onnx")
            plain[size_px] = standard, bundle.manifest.graph(size_px).dense_macs
        found += merging(model, folder, threads)
        run = _runs(session(_export(TimmViT(model), model, folder / "timm.onnx"), threads))
        macs = constant(full.timm_forward_macs)
        found.append(Rival(EXPORTED, "ONNX Runtime, timm's forward", full.size_px, macs, run, True))
        found += openvino_dense(plain, threads)
    return found


def write_dense(bundle: Bundle, folder: Path) -> Path:
    """Write the dense model of a bundle (`images` in, `logits` out) beside a copy of its weights; returns its file."""
    model = checkpoint.load(bundle.path)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle.path / WEIGHTS, folder / WEIGHTS)
    return _export(DenseViT(model), model, folder / "dense.onnx")


def dense_int8(bundle: Bundle, file: Path) -> Path | None:
    """Write the int8 form of a dense graph beside it; None where the bundle has no int8 graph.

    Raises:
        ExportError: the bundle's ranges don't know one of its products.
    """
    if "int8" not in bundle.manifest.served:
        return None
    ranges = json.loads((bundle.path / RANGES).read_text())["ranges"]
    graph, out = onnx.load(file, load_external_data=False), file.with_suffix(".int8.onnx")
    save(quantise(graph, dense_ranges(graph, {key: Range(*span) for key, span in ranges.items()})), out)
    return out


def dense_ranges(dense: ModelProto, served: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of a dense graph's products, which the served graph has, too, among those of the served graph.

    Raises:
        ExportError: one isn't among `served`.
    """
    keys = [key for product in products(dense) for key in product.keys]
    if missing := [key for key in keys if key not in served]:
        raise ExportError(f"{RANGES} doesn't know {missing[0]}: observe anew with `python -m export --calibrate DATA`")
    return {key: served[key] for key in keys}


def merging(model: PrunedViT, folder: Path, threads: int) -> Iterator[Rival]:
    """Token merging at the full size; nothing where the head reads patches."""
    shape, head_dim = shape_of(model), model.vit.blocks[0].attn.head_dim
    for merged in tqdm(merges_of(shape.patches), desc="exporting token merging", leave=False):
        try:
            file = _export(MergedViT(model, merged), model, folder / f"merged-{merged}.onnx")
        except UnsupportedModel as error:
            left_out("token merging", str(error).splitlines()[0])
            return
        macs = constant(merged_macs(shape, merged, head_dim))
        name = f"ONNX Runtime, token merging r={merged}"
        yield Rival(MERGING, name, model.config.image_size_px, macs, _runs(session(file, threads)))


def merges_of(patches: int) -> tuple[int, ...]:
    """Patches to merge in each layer: up to a tenth of them all, in MERGES steps."""
    steps = (round(patches * step / (10 * MERGES)) for step in range(1, MERGES + 1))
    return tuple(dict.fromkeys(step for step in steps if step))


def timm_eager(model: PrunedViT, macs: int) -> Rival:
    """timm's own forward in torch."""
    return Rival(TIMM, "timm, eager", model.config.image_size_px, constant(macs), _in_torch(_forward(model)), True)


def timm_compiled(model: PrunedViT, macs: int, backend: Any = "inductor") -> list[Rival]:
    """The same through torch.compile, weights frozen, for each batch size anew; nothing where it can't compile."""
    options: Any = {"freezing": True} if backend == "inductor" else None
    size_px = model.config.image_size_px
    run = _in_torch(torch.compile(_forward(model), dynamic=False, backend=backend, options=options))
    try:
        run(np.zeros((1, size_px, size_px, 3), np.uint8))
    except RuntimeError as error:
        left_out("torch.compile", " ".join(str(error).splitlines()[:2]))  # whose compiler failed, and how
        return []
    return [Rival(COMPILED, "timm, torch.compile", size_px, constant(macs), run, True)]


def openvino_dense(graphs: Mapping[int, tuple[Path, int]], threads: int) -> list[Rival]:
    """Dense graphs and their MACs, by input size in px, in OpenVINO: in bf16 where the CPU has it, as named."""
    try:
        import openvino
    except ImportError:
        left_out("OpenVINO", "not installed: `pip install openvino` adds it")
        return []
    core = openvino.Core()
    wanted = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}

    def rival(size_px: int, file: Path, macs: int) -> Rival:
        source = core.read_model(file)

        @cache
        def prepared(batch_size: int) -> Any:
            source.reshape([batch_size, size_px, size_px, 3])
            return core.compile_model(source, "CPU", wanted)

        def run(images: Pixels) -> Answer:
            return Answer(prepared(len(images))([images])[0])

        precision = prepared(1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return Rival(OPENVINO, f"OpenVINO, dense {precision}", size_px, constant(macs), run, precision == "f32")

    return [rival(size_px, *graph) for size_px, graph in graphs.items()]


def ours(bundle: Bundle, precision: Precision, points: Sequence[Choice], threads: int) -> list[Rival]:
    """The served engine at several points, in one look or two."""
    if not points:
        return []
    engine, manifest = OnnxEngine(bundle, threads=threads, precision=precision), bundle.manifest

    def infer(images: Pixels, threshold: float) -> Answer:
        return Answer(*engine.infer(images, np.full(len(images), threshold, np.float32)))

    def once(size_px: int, threshold: float) -> Rival:
        def macs(answer: Answer) -> float:
            return float(used_macs(manifest.graph(size_px), answer.kept.sum(-1), threshold > 0).mean())

        run = partial(infer, threshold=threshold)
        return Rival(precision, f"skipvit {precision}", size_px, macs, run, precision == "float32", threshold)

    def twice(size_px: int, threshold: float, sure: float, again_px: int) -> Rival:
        def look_again(first: Answer, images: Pixels) -> Answer:
            again = softmax(first.logits).max(1) < sure
            if not again.any():
                return first
            second, logits = infer(images[again], threshold), first.logits.copy()
            logits[again] = second.logits
            return Answer(logits, first.kept, second.kept)

        def macs(answer: Answer) -> float:
            looks = ((manifest.graph(size_px), answer.kept), (manifest.graph(again_px), answer.kept_again))
            spent = sum(
                float(used_macs(graph, kept.sum(-1), threshold > 0).sum()) for graph, kept in looks if len(kept)
            )
            return spent / len(answer.logits)

        name, run = f"skipvit {precision}, two looks", partial(infer, threshold=threshold)
        return Rival(precision, name, size_px, macs, run, False, threshold, sure, again_px, look_again)

    looks = [(point, second_of(manifest, point)) for point in points]
    return [twice(*point[:3], second.size_px) if second else once(*point[:2]) for point, second in looks]


def session(graph: Path | bytes, threads: int) -> ort.InferenceSession:
    """A graph, its file or itself, in ONNX Runtime, options as the served engine has them."""
    options = session_options(Execution((CPU,), "float32", threads, max_batch_size=32))
    return ort.InferenceSession(graph, options, providers=[CPU])


def left_out(name: str, why: str) -> None:
    """Say that a rival isn't timed."""
    print(f"left out: {name}: {why}", file=sys.stderr)


def constant(macs: int) -> Callable[[Answer], float]:
    """The cost of what costs the same for every image."""
    return lambda _: float(macs)


def _export(module: nn.Module, model: PrunedViT, file: Path) -> Path:
    """Write the graph of `module` beside the weights that are there."""
    images = example_inputs(model)[0]
    save(to_onnx(module.eval(), (images,), (INPUTS[:1], ("logits",)), file.parent / WEIGHTS), file)
    return file


def _runs(made: ort.InferenceSession) -> Callable[[Pixels], Answer]:
    return lambda images: Answer(made.run(None, {"images": images})[0])


def _forward(model: PrunedViT) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: model.vit(normalise(images, model.config.mean, model.config.std))


def _in_torch(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Pixels], Answer]:
    @torch.inference_mode()
    def run(images: Pixels) -> Answer:
        return Answer(forward(torch.from_numpy(images)).numpy())

    return run
