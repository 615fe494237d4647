"""ONNX graphs without weights: every parameter is external data that points into `weights.safetensors`.

torch's dynamo-based exporter is used because the trace-based one is deprecated; it takes longer (a minute against
seconds) and needs nothing from us but a hint about a data-dependent shape, in `models.selection.kept_rows`.
It knows no manifest and no bundle.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxscript import ir, optimizer
from torch import Tensor, nn
from torch.export import Dim

from service.artifact import Precision

OPSET = 20  # LayerNormalization is an operator since 17, Gelu since 20
FOLD_LIMIT = 64  # elements; constants above it stay as they are, so that no piece of a weight is copied into the graph


class ExportError(RuntimeError):
    """A graph that can't be written, or that isn't what was promised."""


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes, from the start of the file
    length: int  # bytes


def safetensors_spans(file: Path) -> dict[str, Span]:
    """Every tensor of a safetensors file by name (format: 8 bytes header length, JSON header, raw tensors)."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    data = 8 + length
    return {
        name: Span(entry["dtype"], tuple(entry["shape"]), data + (o := entry["data_offsets"])[0], o[1] - o[0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def to_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[tuple[str, ...], tuple[str, ...]], weights: Path
) -> ModelProto:
    """`trace` with external weights, in float32.

    Raises:
        ExportError: a weight of the graph isn't in the file `weights`, into which they point by its bare name.
    """
    return externalise(trace(module, inputs, names), weights)


def trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    side: Dim | None = None,
) -> ModelProto:
    """Export `module` with a dynamic batch and its weights inside.

    Args:
        module: a module of `export.graph`, in evaluation mode.
        inputs: example inputs, batch first.
        names: input and output names.
        side: of the first input, square images (B, S, S, 3), if it is dynamic too.

    Raises:
        ExportError: the exporter fails, or gives nothing.
    """
    batch = Dim("batch", min=1, max=4096)
    dynamic: list[dict[int, Dim]] = [{0: batch} for _ in inputs]
    if side is not None:
        dynamic[0] |= {1: side, 2: side}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own renamed axes
        try:
            program = torch.onnx.export(
                module,
                inputs,
                input_names=names[0],
                output_names=names[1],
                dynamic_shapes=tuple(dynamic),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:  # its own text is advice, of many lines
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ExportError(f"torch can't export the model: {reason}") from error
    if program is None:
        raise ExportError("the exporter gave no graph")
    optimizer.optimize_ir(
        program.model,
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
        should_fold=lambda node: False if node.op_type == "Transpose" else None,  # else it folds whole weights
    )
    model = program.model_proto
    _strip_provenance(model)
    return model


def halved(model: ModelProto) -> ModelProto:
    """A copy of a traced graph that computes in float16, for GPUs; its inputs and outputs keep their types.

    What is computed from weights alone stays float32: the runtime folds it on the CPU, which has no such kernels in
    float16.
    """
    half, constant, folded = ModelProto(), {tensor.name for tensor in model.graph.initializer}, []
    half.CopyFrom(model)
    for node in half.graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
            folded.append(node.name)
    converted = ir.from_proto(convert_float_to_float16(half, keep_io_types=True, node_block_list=folded))
    converted.graph.sort()  # casts of inputs were appended
    return ir.to_proto(converted)


def externalise(model: ModelProto, weights: Path) -> ModelProto:
    """Replace every parameter of a traced graph, in place, by external data: fp16 as it is stored.

    Where the graph computes in float32 there is a Cast behind it, which the runtime folds when it loads.

    Raises:
        ExportError: a large initializer has no counterpart in `weights`.
    """
    spans = safetensors_spans(weights)
    kept, casts = [], []
    for initializer in model.graph.initializer:
        span = spans.get(initializer.name.removeprefix("model.").removeprefix("vit."))
        if span is None or span.shape != tuple(initializer.dims) or span.dtype != "F16":
            resampled = initializer.name.endswith("pos_embed")  # another input size: not in the file, small, stays
            if not resampled and math.prod(initializer.dims) > FOLD_LIMIT:
                raise ExportError(f"{initializer.name} {list(initializer.dims)} isn't in {weights.name}")
            kept.append(initializer)
            continue
        halves = initializer.data_type == TensorProto.FLOAT16
        name = initializer.name if halves else f"{initializer.name}.fp16"
        stored = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=initializer.dims)
        stored.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", span.offset), ("length", span.length)):
            stored.external_data.add(key=key, value=str(value))
        kept.append(stored)
        if not halves:
            casts.append(helper.make_node("Cast", [stored.name], [initializer.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return model


def in_precision(name: str, precision: Precision) -> str:
    """The file name of a graph's form in another precision."""
    return name.removesuffix(".onnx") + ("" if precision == "float32" else f".{precision}") + ".onnx"


def _strip_provenance(model: ModelProto) -> None:
    """Drop source paths and stack traces that the exporter leaves: they bloat the graph and name the machine."""
    model.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def save(model: ModelProto, file: Path) -> None:
    """Write a graph beside its weights and let the ONNX checker read it there.

    Raises:
        ExportError: the checker refuses it.
    """
    file.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{file}: {error}") from error
