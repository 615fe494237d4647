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
from onnxscript import optimizer
from torch import Tensor, nn

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
    """Export `module` with a dynamic batch and external weights.

    Args:
        module: a module of `export.graph`, in evaluation mode, whose parameters were loaded from `weights`.
        inputs: example inputs, batch first.
        names: input and output names.
        weights: the safetensors file the graph's weights point into, by its bare name.

    Raises:
        ExportError: a weight of the graph isn't in the file.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own renamed axes
        program = torch.onnx.export(
            module,
            inputs,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
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
    return externalise(model, weights)


def externalise(model: ModelProto, weights: Path) -> ModelProto:
    """Replace every parameter by fp16 external data and a Cast to float32, which the runtime folds when it loads.

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
        stored = TensorProto(name=f"{initializer.name}.fp16", data_type=TensorProto.FLOAT16, dims=initializer.dims)
        stored.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", span.offset), ("length", span.length)):
            stored.external_data.add(key=key, value=str(value))
        kept.append(stored)
        casts.append(helper.make_node("Cast", [stored.name], [initializer.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return model


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
