from __future__ import annotations

import numpy as np

from service.artifact import Graph, LayerMacs
from service.macs import used_macs

GRAPH = Graph(
    file="model.onnx",
    size_px=28,
    patches=4,
    dense_macs=1,
    timm_forward_macs=1,
    fixed_macs=7,
    layer_macs=(
        LayerMacs(constant=100, per_kept=10, per_kept_squared=1),
        LayerMacs(constant=0, per_kept=5, per_kept_squared=2),
    ),
)


def test_each_layer_costs_its_polynomial_and_the_rest_a_fixed_sum() -> None:
    assert used_macs(GRAPH, np.array([4, 3]), True) == 7 + (100 + 40 + 16) + (15 + 18)
    assert used_macs(GRAPH, np.array([0, 0]), True) == 107


def test_rows_that_met_no_gate_cost_what_the_dense_model_does() -> None:
    graph = GRAPH.model_copy(update={"dense_macs": 150})
    counts = np.array([[4, 3], [4, 4]])
    assert used_macs(graph, counts, np.array([True, False])).tolist() == [196, 150]


def test_rows_are_computed_at_once_without_overflow() -> None:
    counts = np.array([[4, 3], [0, 0]], np.uint8)
    assert used_macs(GRAPH, counts, True).tolist() == [196, 107]
    big = Graph.model_validate({**GRAPH.model_dump(), "fixed_macs": 5_000_000_000})
    assert used_macs(big, counts.astype(np.int32), True)[1] == 5_000_000_100
