"""ONNX to ONNX: parts of a traced graph become ONNX Runtime's fused operators, which compute the same in fewer runs.

Softmax attention with its layouts becomes one MultiHeadAttention; a sum and the LayerNormalization behind it become one
SkipLayerNormalization. A part that looks otherwise stays as it is. It knows no bundle and no model.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

CONTRIB = "com.microsoft"
_HEADS_FIRST, _KEYS_LAST = [0, 2, 1, 3], [0, 2, 3, 1]


def fuse(model: ModelProto) -> ModelProto:
    """Fuse what can be fused, in place; returns the graph."""
    graph, nodes = _Graph(model), {id(node): [node] for node in model.graph.node}
    for node in model.graph.node:
        try:
            old, new = {"Softmax": _attention, "LayerNormalization": _sum_and_norm}[node.op_type](graph, node)
        except LookupError:  # another operator, or a part that looks otherwise
            continue
        for each in old[:-1]:
            nodes[id(each)] = []
        nodes[id(old[-1])] = new
    fused = [each for node in model.graph.node for each in nodes[id(node)]]
    del model.graph.node[:]
    model.graph.node.extend(fused)
    if not any(entry.domain == CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model


class _Graph:
    """A graph's nodes by what they give and what they read."""

    def __init__(self, model: ModelProto) -> None:
        self._givers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def giver(self, name: str, kind: str, **attributes: object) -> NodeProto:
        """The node that gives `name`, of this kind; LookupError if it is another."""
        return _checked(self._givers[name], kind, attributes)

    def giver_of(self, name: str) -> NodeProto:
        """The node that gives `name`; LookupError if none does."""
        return self._givers[name]

    def reader(self, node: NodeProto, kind: str, **attributes: object) -> NodeProto:
        """The only node that reads what `node` gives, of this kind; LookupError if there are others."""
        readers = self._readers[node.output[0]]
        if len(readers) != 1:
            raise LookupError(node.output[0])
        return _checked(readers[0], kind, attributes)

    def constant(self, name: str) -> NDArray[np.generic]:
        """A small constant; LookupError if it is none."""
        giver = self._givers.get(name)
        if giver is not None:
            return numpy_helper.to_array(_attributes(_checked(giver, "Constant", {}))["value"])
        return numpy_helper.to_array(self._constants[name])


def _attention(graph: _Graph, softmax: NodeProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes around a softmax over a product of heads, and those that take their place."""
    scores = graph.giver(softmax.input[0], "MatMul")
    scaled, key = graph.giver(scores.input[0], "Mul"), graph.giver(scores.input[1], "Transpose", perm=_KEYS_LAST)
    query = graph.giver(scaled.input[0], "Transpose", perm=_HEADS_FIRST)
    mixed = graph.reader(softmax, "MatMul")
    value = graph.giver(mixed.input[1], "Transpose", perm=_HEADS_FIRST)
    last = graph.reader(mixed, "Transpose", perm=_HEADS_FIRST)
    flat = [graph.giver(each.input[0], "Reshape") for each in (query, key, value)]  # (B * N, C) -> (B, N, h, d)
    shapes = [graph.constant(each.input[1]).tolist() for each in flat]
    heads, width = shapes[0][2], math.prod(shapes[0][2:])
    names, nodes = [f"{last.output[0]}/{part}" for part in ("query", "key", "value")], []
    for name, each, shape in zip(names, flat, shapes, strict=True):
        target = numpy_helper.from_array(np.array([*shape[:2], width], np.int64))
        nodes.append(helper.make_node("Constant", [], [f"{name}/shape"], value=target))
        nodes.append(helper.make_node("Reshape", [each.input[0], f"{name}/shape"], [name]))
    scale = float(graph.constant(scaled.input[1]).item())
    nodes.append(
        helper.make_node("MultiHeadAttention", names, list(last.output), domain=CONTRIB, num_heads=heads, scale=scale)
    )
    return [*flat, query, key, value, scaled, scores, softmax, mixed, last], nodes


def _sum_and_norm(graph: _Graph, norm: NodeProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """A sum and the normalisation of it, and the node that does both; other readers of the sum are served."""
    both = graph.giver(norm.input[0], "Add")
    for name in both.input:  # neither of them a constant, which might be broadcast
        graph.giver_of(name)
    fused = helper.make_node(
        "SkipLayerNormalization",
        [*both.input, *norm.input[1:]],
        [norm.output[0], "", "", both.output[0]],
        domain=CONTRIB,
        epsilon=_attributes(norm)["epsilon"],
    )
    return [norm, both], [fused]


def _attributes(node: NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _checked(node: NodeProto, kind: str, attributes: dict[str, object]) -> NodeProto:
    if node.op_type != kind or any(_attributes(node).get(name) != value for name, value in attributes.items()):
        raise LookupError(kind)
    return node
