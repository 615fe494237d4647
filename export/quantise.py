"""ONNX to ONNX: the same graph with its large matrix products in int8, for CPUs. It knows no bundle and no data set.

Weights become int8 for each output channel, in nodes that compute them from the fp16 weights file when the graph is
loaded (the runtime folds them): there is no second weights file. Activations become uint8 with one fixed range for each
product, observed on real images. Fixed ranges keep a row's answer independent of its neighbours, which ranges found
for each batch would not; sums are exact in int32. The patch embedding (a hundredth of the work, and every layer lives
with its error), gates, bypasses, normalisation, softmax, the products within attention and the head stay float32.

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
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_ACTIVATION_LEVELS = 255
_PRODUCTS = {"Gemm": 1, "MatMul": 1, "Attention": 3}  # operators, and how many products each is
_CONTRIB = "com.microsoft"
_LEFT = ("patch_embed.", "gates.", "bypasses.", "head.")  # parts of the names of weights that stay float32
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

    keys: tuple[str, ...]  # the weight's name and which of its uses this is; the same in every graph of a model
    activation: str  # the tensor that is multiplied
    result: str


def products(model: ModelProto, *, leave: Iterable[str] = _LEFT) -> list[Product]:
    """The graph's products with constant weights, in order; those of weights whose name has a part of `leave` aside.

    An Attention is three, of queries, keys and values, in one: the range of what it reads spans all of theirs.
    """
    roots = {  # each constant's largest ancestor
        tensor.name: (math.prod(tensor.dims), tensor.name.removesuffix(".fp16")) for tensor in model.graph.initializer
    }
    found: list[Product] = []
    uses: dict[str, int] = {}
    for node in model.graph.node:
        if all(name in roots for name in node.input if name):
            roots |= dict.fromkeys(node.output, max((roots[name] for name in node.input if name), default=(0, "")))
            continue
        if node.op_type in _PRODUCTS and node.input[0] not in roots and node.input[1] in roots:
            root = roots[node.input[1]][1]
            if any(part in root for part in leave):
                continue
            first = uses.get(root, 0)
            uses[root] = first + _PRODUCTS[node.op_type]
            keys = tuple(f"{root}:{use}" for use in range(first, uses[root]))
            found.append(Product(keys, node.input[0], node.output[0]))
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
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
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
    return {key: spans[product.activation] for product in wanted for key in product.keys}


def quantise(model: ModelProto, ranges: Mapping[str, Range]) -> ModelProto:
    """A copy of `model` whose products are int8 where `ranges` knows their activations."""
    out = ModelProto()
    out.CopyFrom(model)
    writer = _Writer(model, ranges)
    nodes = [new for node in model.graph.node for new in writer.replace(node)]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    out.graph.initializer.extend(numpy_helper.from_array(value, f"int8/{name}") for name, value in _SHARED.items())
    if not any(entry.domain == _CONTRIB for entry in out.opset_import):
        out.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return out


class _Writer:
    """Replaces the products of one graph, node by node, in order."""

    def __init__(self, model: ModelProto, ranges: Mapping[str, Range]) -> None:
        chosen = [each for each in products(model) if all(key in ranges for key in each.keys)]
        self._products = {each.result: each for each in chosen}
        self._spans = {
            each.result: Range(min(ranges[key].low for key in each.keys), max(ranges[key].high for key in each.keys))
            for each in chosen
        }
        self._prefixes = {each.result: f"int8/{number}" for number, each in enumerate(chosen)}
        self._quantised: dict[tuple[str, Range], tuple[str, str, str]] = {}  # an activation is quantised once
        self._biases, self._sums = _biases(model, self._products)

    def replace(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that stand for this one."""
        if node.output[0] in self._sums:
            return
        if node.output[0] not in self._products:
            yield node
            return
        product, prefix = self._products[node.output[0]], self._prefixes[node.output[0]]
        span = self._spans[product.result]
        if (product.activation, span) not in self._quantised:
            names = (f"{prefix}/activation", f"{prefix}/scale", f"{prefix}/zero")
            self._quantised[product.activation, span] = names
            yield from _activation(product.activation, span, *names)
        activation, scale, zero = self._quantised[product.activation, span]
        yield from _weight(node, prefix)
        weight, weight_scale = f"{prefix}/weight", f"{prefix}/weight_scale"
        if node.op_type == "Attention":
            inputs = [activation, weight, node.input[2], scale, weight_scale, "", zero]
            (heads,) = (attribute.i for attribute in node.attribute if attribute.name == "num_heads")
            yield helper.make_node("QAttention", inputs, list(node.output), domain=_CONTRIB, num_heads=heads)
            return
        bias, result = self._biases.get(node.output[0], (next(iter(node.input[2:3]), ""), node.output[0]))
        inputs = [activation, weight, scale, weight_scale, zero, "", bias]
        yield helper.make_node("MatMulIntegerToFloat", inputs, [result], domain=_CONTRIB)


def _biases(model: ModelProto, chosen: Iterable[str]) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """MatMuls of `chosen` that a constant vector is added to next: (its name, the sum's) by result; all such sums."""
    vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Mul") and vectors.issuperset(node.input):  # from float16; by a LayerScale
            vectors.update(node.output)
        for name in node.input:
            readers.setdefault(name, []).append(node)
    matmuls = {node.output[0] for node in model.graph.node if node.op_type == "MatMul"} & set(chosen)
    biases: dict[str, tuple[str, str]] = {}
    for name in matmuls:
        if [node.op_type for node in readers.get(name, [])] == ["Add"]:
            (add,) = readers[name]
            (other,) = (each for each in add.input if each != name)
            if other in vectors:
                biases[name] = (other, add.output[0])
    return biases, {total for _, total in biases.values()}


def _activation(source: str, span: Range, activation: str, scale: str, zero: str) -> Iterator[NodeProto]:
    """The nodes that make uint8 of a tensor."""
    step = (span.high - span.low) / _ACTIVATION_LEVELS
    for name, value in ((scale, np.array(step, np.float32)), (zero, np.array(round(-span.low / step), np.uint8))):
        yield helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
    yield helper.make_node("QuantizeLinear", [source, scale, zero], [activation])


def _weight(node: NodeProto, prefix: str) -> Iterator[NodeProto]:
    """The nodes that make int8 of a product's weights (K, N), or (N, K) in a Gemm with transB; folded when loaded."""
    rows_are_outputs = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)

    def name(part: str) -> str:
        return f"{prefix}/{part}"

    yield helper.make_node("Abs", [node.input[1]], [name("abs")])
    axis = "int8/last_axis" if rows_are_outputs else "int8/first_axis"
    yield helper.make_node("ReduceMax", [name("abs"), axis], [name("largest")], keepdims=1)
    yield helper.make_node("Div", [name("largest"), "int8/levels"], [name("step")])
    yield helper.make_node("Max", [name("step"), "int8/smallest"], [name("steps")])
    yield helper.make_node("Div", [node.input[1], name("steps")], [name("scaled")])
    yield helper.make_node("Round", [name("scaled")], [name("rounded")])
    whole = name("whole" if rows_are_outputs else "weight")
    yield helper.make_node("Cast", [name("rounded")], [whole], to=TensorProto.INT8)
    if rows_are_outputs:
        yield helper.make_node("Transpose", [whole], [name("weight")], perm=[1, 0])
    yield helper.make_node("Reshape", [name("steps"), "int8/flat"], [name("weight_scale")])
