"""The profile's parts add up to its whole, and layers are told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export import profile
from models import checkpoint
from models.macs import shape_of


def test_kinds_and_layers_share_the_same_time(
    tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(tiny_bundle), "--images", str(toy_images), "--threshold", "0.5", "--batch-size", "3"]
    assert profile.main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds, layers = found["by_kind"], found["by_layer"]
    assert sum(kinds.values()) == pytest.approx(sum(layers.values()), rel=1e-6)
    depth = shape_of(checkpoint.load(tiny_bundle)).layers
    assert set(layers) == {"embedding", "head"} | {f"layer {i}" for i in range(depth)}
    assert {"projections and MLPs", "norms", "gather and scatter", "activation functions"} <= set(kinds)
    assert all(spent_ms > 0 for spent_ms in [*kinds.values(), *layers.values()])


def test_what_cant_be_profiled_is_one_line(
    tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(tiny_bundle), "--images", str(toy_images)]
    assert profile.main([*command, "--size", "13"]) == 2
    assert profile.main([*command, "--precision", "int8"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        "export.profile: tiny has no input size 13 px",
        f"export.profile: {tiny_bundle} has no int8 graph",
    ]


def test_a_product_with_weights_is_a_projection_and_one_of_attention_isnt() -> None:
    def matmul(*shapes: list[int]) -> dict[str, Any]:
        return {"dur": 1000, "args": {"op_name": "MatMul", "input_type_shape": [{"float": each} for each in shapes]}}

    rows, weights, heads = [8, 50, 384], [384, 1536], [8, 6, 50, 64]
    found = profile.summarise([[matmul(rows, weights), matmul(rows), matmul(heads, heads)]])["by_kind"]
    assert found == {"projections and MLPs": 2.0, "attention's products, gates": 1.0}
