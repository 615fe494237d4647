"""Verdicts of the benchmark: what is realised of saved MACs, on a line or at the nearest pair, and the default."""

from __future__ import annotations

from typing import Any

import pytest

from export.targets import Target, in_words, targets


def row(precision: str, macs_ratio: float, images_s: float, **more: Any) -> dict[str, Any]:
    rest = {"batch_size": 8, "size_px": 112, "threshold": 0.0, "sure": 0.0, "accuracy": 0.9}
    return {"precision": precision, "macs_ratio": macs_ratio, "images_s": images_s} | rest | more


ROWS = [
    row("dense", 1.0, 104),
    row("timm-onnx", 1.1, 100),
    row("timm", 1.1, 80),
    row("float32", 1.0, 103, speedup=0.99, of_best_gemm=0.7),
    row("float32", 0.88, 120, threshold=0.2),  # 20 % fewer than timm's, 0.96 realised
    row("float32", 0.66, 142, threshold=0.4),  # 40 % fewer, 0.852 realised
    row("float32", 0.561, 180, threshold=0.1, size_px=84),  # 49 % fewer, 0.918 realised
    row("float32", 0.30, 300, sure=0.6, size_px=56),
]
EQUAL = [
    {"setting": "balanced", "precision": precision, "batch_size": 8, "accuracy": accuracy, "images_s": images_s}
    for precision, accuracy, images_s in (("float32", 0.899, 150), ("int8", 0.885, 240))
]


def by_name(found: list[Target]) -> dict[str, Target]:
    return {target.name: target for target in found}


def test_what_is_realised_is_against_timms_own_forward() -> None:
    found = by_name(targets(ROWS, EQUAL))
    alone = [found[f"realised at {share} % fewer MACs, gates alone"] for share in (30, 50, 70)]
    assert [target.value for target in alone] == [pytest.approx(0.906), None, None]  # nothing outside what was measured
    assert [target.met for target in alone] == [True, None, None]
    both = [found[f"realised at {share} % fewer MACs, smaller input and gates"] for share in (30, 50, 70)]
    assert [target.value for target in both] == [None, pytest.approx(0.918), None]  # two looks are no such pair
    assert both[1].met is True


def test_one_image_is_held_to_less() -> None:
    alone = [each | {"batch_size": 1} for each in ROWS]
    found = [target for target in targets([*ROWS, *alone], EQUAL) if target.name.startswith("realised at 30 %")]
    assert {(target.batch_size, target.bound) for target in found} == {(1, 0.8), (8, 0.9)}


def test_the_default_is_held_to_its_own_precision() -> None:
    found = by_name(targets(ROWS, EQUAL))
    torch, onnx = (found[f"balanced, images/s over timm's forward in {name}"] for name in ("torch", "ONNX Runtime"))
    assert (torch.value, torch.met) == (3.0, True)
    assert (onnx.value, onnx.met) == (2.4, True)
    lost = found["balanced, points of accuracy lost"]
    assert lost.value == pytest.approx(1.5)
    assert lost.met is False
    assert by_name(targets(ROWS, EQUAL[:1]))[lost.name].value == pytest.approx(0.1)
    assert by_name(targets(ROWS, []))[lost.name].met is None


def test_the_plain_model_is_held_to_dense_and_to_the_machines_best() -> None:
    found = by_name(targets(ROWS, EQUAL))
    assert found["threshold 0 over dense"].met is True
    assert found["threshold 0, GFLOP/s over the best product's"].met is False


def test_a_line_each_with_verdicts_for_each_batch_size() -> None:
    alone = [each | {"batch_size": 1} for each in ROWS]
    lines = in_words(targets([*ROWS, *alone], EQUAL)).splitlines()
    assert lines[0].split() == ["target", "batch", "1", "batch", "8"]
    assert len(lines) == 1 + 2 * 3 + 2 + 3
    (lost,) = (line for line in lines if line.startswith("balanced, points"))
    assert lost.split()[-5:] == ["-", "1.50", "<=", "1", "MISSED"]
    (first,) = (line for line in lines if line.startswith("realised at 30 % fewer MACs, gates"))
    assert first.count("met") == 2


def test_rows_of_few_points_have_no_verdict() -> None:
    found = targets(ROWS[:1], [])
    assert {target.met for target in found} == {None}
