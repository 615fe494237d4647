"""ONNX to ONNX: the same graph with its large matrix products in int8, for CPUs. It knows no bundle and no data set.

Weights become int8 for each output channel, in nodes that compute them from the fp16 weights file when the graph is
loaded (the runtime folds them): there is no second weights file. Activations become uint8 with one fixed range for each
product, observed on real images. Fixed ranges keep a row's answer independent of its neighbours, which ranges found
for each batch would not; sums are exact in int32. Gates, normalisation, softmax, the products within attention and the
head stay float32.

Weights take 7 bits of the 8: CPUs without VNNI add two products of 8 by 8 bits into 16 with saturation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

_ACTIVATION_LEVELS = 255
_CONTRIB = "com.microsoft"
_SHARED: dict[str, NDArray[np.generic]] = {  # constants of every product
    "first_axis": np.array([0]),
    "last_axis": np.array([1]),
    "flat": np.array([-1]),
    "levels": np.array(63, np.float32),  # of a weight, to either side of 0: 7 bits
    "smallest": np.array(1e-10, np.float32),  # step of a channel whose weights are all 0
}


class Range(NamedTuple):
    """What one product's activations span; 0 lies within."""

    low: float
    high: float


class Product(NamedTuple):
    """A matrix product with constant weights, that can be done in int8."""

    key: str  # the weight's name and which of its uses this is; the same in every graph of a model
    activation: str  # the tensor that is multiplied
    result: str


def products(model: ModelProto, *, leave: Iterable[str] = ("gates.", "head.")) -> list[Product]:
    """The graph's products with constant weights, in order; those of weights whose name has a part of `leave` aside."""
    roots = {  # each constant's largest ancestor
        tensor.name: (math.prod(tensor.dims), tensor.name.removesuffix(".fp16")) for tensor in model.graph.initializer
    }
    found: list[Product] = []
    uses: dict[str, int] = {}
    for node in model.graph.node:
        if all(name in roots for name in node.input if name):
            roots |= dict.fromkeys(node.output, max((roots[name] for name in node.input if name), default=(0, "")))
            continue
        if node.op_type in ("Gemm", "MatMul") and node.input[0] not in roots and node.input[1] in roots:
            root = roots[node.input[1]][1]
            if any(part in root for part in leave):
                continue
            uses[root] = uses.get(root, -1) + 1
            found.append(Product(f"{root}:{uses[root]}", node.input[0], node.output[0]))
    return found


def observe(
    file: Path, batches: Iterable[Mapping[str, NDArray[np.generic]]], *, outside: float = 1e-4
) -> dict[str, Range]:
    """What the activations of every product span over `batches` of inputs; a share `outside` of them is cut off.

    Args:
        file: a graph with its weights beside it.
        batches: feeds of the graph.
        outside: of each batch's values, half at either end.
    """
    model = onnx.load(file, load_external_data=False)
    wanted = products(model)
    names = list(dict.fromkeys(product.activation for product in wanted))
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in known
    )
    observed = file.with_name(f".observed-{file.name}")
    try:
        observed.write_bytes(model.SerializeToString())
        session = ort.InferenceSession(observed, providers=["CPUExecutionProvider"])
        ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for feed in batches:
            for name, values in zip(names, session.run(names, dict(feed)), strict=True):
                low, high = np.quantile(values, (outside / 2, 1 - outside / 2))
                ends[name].append((float(low), float(high)))
    finally:
        observed.unlink(missing_ok=True)
    spans = {
        name: Range(min(0.0, *(low for low, _ in each)), max(0.0, *(high for _, high in each)))
        for name, each in ends.items()
    }
    return {product.key: spans[product.activation] for product in wanted}


def quantise(model: ModelProto, ranges: Mapping[str, Range]) -> ModelProto:
    """A copy of `model` whose products are int8 where `ranges` knows their activations."""
    chosen = {product.result: product.key for product in products(model) if product.key in ranges}
    prefixes = {key: f"int8/{number}" for number, key in enumerate(chosen.values())}
    out = ModelProto()
    out.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        key = chosen.get(node.output[0])
        nodes += [node] if key is None else list(_int8(node, prefixes[key], ranges[key]))
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    out.graph.initializer.extend(numpy_helper.from_array(value, f"int8/{name}") for name, value in _SHARED.items())
    if not any(entry.domain == _CONTRIB for entry in out.opset_import):
        out.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return out


def _int8(node: NodeProto, prefix: str, span: Range) -> Iterator[NodeProto]:
    """The nodes that replace one product: Y = A @ W (+ bias), W (K, N), or (N, K) in a Gemm with transB."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    rows_are_outputs = bool(attributes.get("transB", 0))
    scale = (span.high - span.low) / _ACTIVATION_LEVELS

    def name(part: str) -> str:
        return f"{prefix}/{part}"

    def constant(part: str, value: NDArray[np.generic]) -> NodeProto:
        return helper.make_node("Constant", [], [name(part)], value=numpy_helper.from_array(value))

    yield constant("scale", np.array(scale, np.float32))
    yield constant("zero", np.array(round(-span.low / scale), np.uint8))
    yield helper.make_node("Abs", [node.input[1]], [name("abs")])
    axis = "int8/last_axis" if rows_are_outputs else "int8/first_axis"
    yield helper.make_node("ReduceMax", [name("abs"), axis], [name("largest")], keepdims=1)
    yield helper.make_node("Div", [name("largest"), "int8/levels"], [name("step")])
    yield helper.make_node("Max", [name("step"), "int8/smallest"], [name("steps")])
    yield helper.make_node("Div", [node.input[1], name("steps")], [name("scaled")])
    yield helper.make_node("Round", [name("scaled")], [name("rounded")])
    yield helper.make_node("Cast", [name("rounded")], [name("int8")], to=onnx.TensorProto.INT8)
    matrix = name("int8")
    if rows_are_outputs:
        matrix = name("weight")
        yield helper.make_node("Transpose", [name("int8")], [matrix], perm=[1, 0])
    yield helper.make_node("Reshape", [name("steps"), "int8/flat"], [name("weight_scale")])
    yield helper.make_node("QuantizeLinear", [node.input[0], name("scale"), name("zero")], [name("activation")])
    inputs = [name("activation"), matrix, name("scale"), name("weight_scale"), name("zero"), "", *node.input[2:3]]
    yield helper.make_node("MatMulIntegerToFloat", inputs, list(node.output), domain=_CONTRIB)
