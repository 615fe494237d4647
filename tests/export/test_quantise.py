"""int8 graphs: near the float32 ones, exact about neighbours, without weights, and refused where they don't fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import precision
from export.__main__ import main
from export.int8 import check_labels, write_int8
from export.quantise import Range, observe, products, quantise
from export.to_onnx import ExportError
from service.artifact import Bundle, load_bundle
from service.engine import EngineOutput
from service.errors import BundleError
from service.onnx_engine import OnnxEngine
from tests.fakes import FakeEngine

K, N = 24, 16
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((N, K)).astype(np.float32) / 5
BIAS = RNG.standard_normal(N).astype(np.float32)


def toy(*, transposed: bool) -> ModelProto:
    """y = x @ W + b, then z = y @ V, whose V belongs to a gate."""
    weight = WEIGHT if transposed else np.ascontiguousarray(WEIGHT.T)
    first = helper.make_node("Gemm", ["x", "block.weight", "block.bias"], ["y"], transB=int(transposed))
    second = helper.make_node("MatMul", ["y", "gates.0.fc1.weight"], ["z"])
    values = [("block.weight", weight), ("block.bias", BIAS), ("gates.0.fc1.weight", np.ones((N, 2), np.float32))]
    graph = helper.make_graph(
        [first, second],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
        [numpy_helper.from_array(value, name) for name, value in values],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(["y"], {"x": x})[0]
    return result


@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_in_int8_is_near_and_gates_stay_as_they_are(transposed: bool, tmp_path: Path) -> None:
    model, x = toy(transposed=transposed), RNG.standard_normal((40, K)).astype(np.float32)
    (tmp_path / "toy.onnx").write_bytes(model.SerializeToString())
    ranges = observe(tmp_path / "toy.onnx", [{"x": x}], outside=0.0)
    assert list(ranges) == ["block.weight:0"]
    assert ranges["block.weight:0"] == pytest.approx((x.min(), x.max()))
    assert [file.name for file in tmp_path.iterdir()] == ["toy.onnx"]
    small = quantise(model, ranges)
    kinds = [node.op_type for node in small.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 1
    assert kinds.count("MatMul") == 1  # the gate's
    expected = x @ WEIGHT.T + BIAS
    error = np.abs(run(small, x) - expected)
    assert 0 < error.mean() < 0.02 * np.abs(expected).mean()


def test_what_lies_outside_the_range_is_clipped_and_zero_is_exact() -> None:
    small = quantise(toy(transposed=True), {"block.weight:0": Range(-1.0, 3.0)})
    x = np.zeros((2, K), np.float32)
    np.testing.assert_allclose(run(small, x)[0], BIAS, atol=1e-6)
    x[0], x[1] = 3.0, 300.0
    np.testing.assert_array_equal(*run(small, x))


def test_products_are_named_by_their_weights_and_uses() -> None:
    model = toy(transposed=True)
    model.graph.node.append(helper.make_node("Gemm", ["x", "block.weight", "block.bias"], ["again"], transB=1))
    assert [product.keys for product in products(model)] == [("block.weight:0",), ("block.weight:1",)]
    assert [product.result for product in products(model)] == ["y", "again"]


def test_a_sum_with_a_constant_goes_into_its_product_and_an_activation_is_quantised_once() -> None:
    nodes = [
        helper.make_node("Transpose", ["block.weight"], ["w"], perm=[1, 0]),
        *(helper.make_node("MatMul", ["x", "w"], [name]) for name in ("a", "b", "c")),
        helper.make_node("Add", ["block.bias", "a"], ["y"]),  # a bias
        helper.make_node("Add", ["b", "rows"], ["d"]),  # none: it differs from row to row
        helper.make_node("Add", ["d", "c"], ["z"]),
    ]
    model = toy(transposed=True)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((40, N), np.float32), "rows"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    small = quantise(model, {f"block.weight:{use}": Range(-4, 4) for use in range(3)})
    kinds = [node.op_type for node in small.graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("QuantizeLinear"), kinds.count("Add")) == (3, 1, 2)
    x = RNG.standard_normal((40, K)).astype(np.float32)
    np.testing.assert_allclose(run(small, x), x @ WEIGHT.T + BIAS, atol=0.15)


def test_attention_is_three_products_in_one_operator() -> None:
    width, heads = 32, 2
    weight = RNG.standard_normal((width, 3 * width)).astype(np.float32) / 5
    values = {"attn.qkv.weight": weight, "attn.qkv.bias": RNG.standard_normal(3 * width).astype(np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Attention", ["x", *values], ["y"], domain="com.microsoft", num_heads=heads)],
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    keys = tuple(f"attn.qkv.weight:{use}" for use in range(3))
    assert [product.keys for product in products(model)] == [keys]
    assert quantise(model, {keys[0]: Range(-4, 4)}).graph.node[0].op_type == "Attention"  # two ranges are missing
    small = quantise(model, {keys[0]: Range(-4, 2), keys[1]: Range(-1, 4), keys[2]: Range(-1, 1)})
    assert [node.op_type for node in small.graph.node][-1] == "QAttention"
    x = RNG.standard_normal((3, 7, width)).astype(np.float32).clip(-4, 4)
    one, other = run(small, x), run(model, x)
    assert 0 < np.abs(one - other).max() < 0.15


def test_a_bundle_has_a_graph_for_all_sizes_in_every_precision_and_no_second_weights(int8_bundle: Bundle) -> None:
    assert set(int8_bundle.manifest.served) == {"float32", "float16", "int8"}
    for name in int8_bundle.manifest.served.values():
        model = onnx.load(int8_bundle.path / name, load_external_data=False)
        inline = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
        assert sum(np.prod(t.dims, initial=1) for t in inline if not t.name.endswith("pos_embed")) < 1000
        locations = {
            entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"
        }
        assert locations == {"weights.safetensors"}
        products = sum(node.op_type == "MatMulIntegerToFloat" for node in model.graph.node)
        assert products >= 4 * 5 if "int8" in name else not products


def test_int8_rows_dont_depend_on_their_neighbours(int8_bundle: Bundle) -> None:
    engine = OnnxEngine(int8_bundle, threads=1, precision="int8")
    images = RNG.integers(0, 256, (5, 64, 64, 3), np.uint8)
    threshold = np.array([0, 0.3, 0.5, 0.7, 1], np.float32)
    together = engine.infer(images, threshold)
    assert together.kept[0].all()
    for row in range(len(images)):
        alone = engine.infer(images[row : row + 1], threshold[row : row + 1])
        assert np.array_equal(alone.kept[0], together.kept[row])
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-4)


def test_a_bundle_without_int8_graphs_says_what_to_do(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no int8 graph: set SKIPVIT_PRECISION=float32, or export"):
        OnnxEngine(load_bundle(tiny_bundle), threads=1, precision="int8")


def test_ranges_of_another_graph_are_refused(int8_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(int8_bundle.path, folder)
    ranges = json.loads((folder / "int8.json").read_text())
    before = (folder / "anysize.int8.onnx").read_bytes()
    write_int8(folder / "anysize.onnx", ranges)
    assert (folder / "anysize.int8.onnx").read_bytes() == before
    ranges["ranges"]["another.weight:0"] = [0, 1]
    with pytest.raises(ExportError, match=r"another.weight:0\): observe anew with --calibrate DATA"):
        write_int8(folder / "anysize.onnx", ranges)


def labelled(*labels: int) -> NDArray[np.uint8]:
    """Images (n, 28, 28, 3) to which a fake engine gives these labels."""
    return np.tile(np.array(labels, np.uint8)[:, None, None, None], (1, 28, 28, 3))


class Shifted(FakeEngine):
    """Answers another label for the first `wrong` images."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        return super().infer(
            images + (np.arange(len(images)) < self.wrong).astype(np.uint8)[:, None, None, None], threshold
        )


@pytest.mark.parametrize(
    ("wrong", "images", "refused"),
    [(0, 4, False), (1, 4, False), (3, 4, True), (1, 1, False), (2, 2, True), (3, 12, False), (5, 12, True)]
    + [(3, 32, False), (4, 32, True), (4, 48, False), (5, 48, True), (120, 1000, True)],
)
def test_few_images_refuse_a_precision_only_where_chance_doesnt_explain_it(
    wrong: int, images: int, refused: bool
) -> None:
    pixels = labelled(*[0] * images)
    if not refused:
        check_labels(FakeEngine(), Shifted(wrong), "int8", pixels)
        return
    with pytest.raises(ExportError) as caught:
        check_labels(FakeEngine(), Shifted(wrong), "int8", pixels)
    assert f"at 28 px int8 agrees with float32 on {images - wrong} of {images} images alone" in str(caught.value)
    assert "more --images" in str(caught.value)
    assert "without --calibrate" in str(caught.value)


def test_a_precision_that_overflows_is_refused_in_a_clear_word() -> None:
    with pytest.raises(ExportError, match=r"^at 28 px the float16 graph fails \(.*not finite\): float16 ends at 65504"):
        check_labels(FakeEngine(), FakeEngine(not_finite=frozenset({3})), "float16", labelled(0, 1, 3))


def test_both_precisions_are_compared_on_the_same_images(
    int8_bundle: Bundle, tiny_bundle: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "int8-evaluation.json"
    command = ["--bundle", str(int8_bundle.path), "--data", str(toy_images), "--out", str(out)]
    assert precision.main(command) == 0
    found = json.loads(out.read_text())
    rows = {(row["size_px"], row["threshold"], row["sure"]): row for row in found["rows"]}
    assert set(rows) >= {(64, 0, 0), (32, 0, 0), (32, 0, precision.SURE), (32, precision.SKIPPING, 0)}
    assert {(64, threshold, 0) for threshold in precision.FEW_TO_MOST} <= set(rows)
    for row in found["rows"]:
        assert abs(row["top1"] - row["float32_top1"]) <= 1 - row["same_top1"] + 1e-9
        assert row["same_decisions"] > 0.8 or row["sure"]
    twice, dense = rows[32, 0, precision.SURE], [rows[size_px, 0, 0]["macs_ratio"] for size_px in (64, 32)]
    looked_again = (twice["float32_macs_ratio"] - dense[1]) / dense[0]
    evaluation = json.loads((tiny_bundle / "evaluation.json").read_text())["second_looks"]
    (expected,) = [row for row in evaluation if (row["threshold"], row["sure"]) == (0, precision.SURE)]
    assert looked_again == pytest.approx(expected["looked_again"], abs=1e-3)
    assert twice["float32_top1"] == expected["top1"]
    shutil.copytree(int8_bundle.path, tmp_path / "tiny")
    shutil.copyfile(out, tmp_path / "tiny" / "int8-evaluation.json")
    folder = str(tmp_path / "tiny")
    assert main(["--checkpoint", folder, "--out", folder, "--keep-graphs"]) == 0
    manifest = load_bundle(tmp_path / "tiny").manifest
    assert len(manifest.int8) == len(rows)
    assert manifest.version == int8_bundle.manifest.version
    assert "## In int8" in (tmp_path / "tiny" / "README.md").read_text()
    assert precision.main(["--bundle", str(tiny_bundle), "--data", str(toy_images)]) == 2
    assert "no int8 graph" in capsys.readouterr().err
