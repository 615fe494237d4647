"""A bundle is whole, verified, weightless in its graphs, and says what was measured."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from export.__main__ import main
from export.to_onnx import safetensors_spans
from models import checkpoint
from models.frontier import frontier
from models.macs import shape_of
from service.artifact import Bundle, load_bundle
from tests.conftest import GATED

Capture = pytest.CaptureFixture[str]


def test_the_bundle_verifies_and_holds_what_the_contract_names(tiny_bundle: Path) -> None:
    manifest = load_bundle(tiny_bundle).manifest
    assert manifest.sizes_px == (64, 32)
    assert [graph.file for graph in manifest.graphs] == ["model.onnx", "model-32.onnx"]
    assert set(manifest.files) == {file.name for file in tiny_bundle.iterdir()} - {"manifest.json"}
    assert manifest.served == {"float32": "anysize.onnx", "float16": "anysize.float16.onnx"}
    assert manifest.dense == {"float32": "anysize-dense.onnx", "float16": "anysize-dense.float16.onnx"}
    assert {"weights.safetensors", "masked.onnx", "README.md", "parity.json"} <= set(manifest.files)
    assert (manifest.presets["full"].size_px, manifest.presets["full"].threshold) == (64, 0)
    assert manifest.labels == ("blue", "green", "red")


def test_the_manifest_says_what_was_measured_at_every_size(tiny_bundle: Path) -> None:
    manifest, model = load_bundle(tiny_bundle).manifest, checkpoint.load(tiny_bundle)
    for graph in manifest.graphs:
        shape = shape_of(checkpoint.at_size(model, graph.size_px))
        assert (graph.dense_macs, graph.timm_forward_macs) == (shape.dense, shape.timm_forward)
    calibration = json.loads((tiny_bundle / "calibration.json").read_text())["rows"]
    assert [(p.size_px, p.threshold, p.macs_ratio.mean, p.accuracy) for p in manifest.calibration] == [
        (row["size_px"], row["threshold"], row["macs_ratio"], row["top1"]) for row in calibration
    ]
    evaluation = json.loads((tiny_bundle / "evaluation.json").read_text())
    dense = next(row for row in evaluation["rows"] if (row["size_px"], row["threshold"]) == (64, 0))
    assert (manifest.evaluation.top1, manifest.evaluation.images) == (dense["top1"], 12)
    assert manifest.evaluation.runtime == f"{evaluation['runtime']}, threshold 0"


@pytest.mark.parametrize("name", ["model.onnx", "model-32.onnx"])
def test_the_sparse_graph_computes_no_norm_twice_and_scatters_twice_a_gated_layer(name: str, tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / name)
    nodes, values = model.graph.node, onnx.shape_inference.infer_shapes(model).graph.value_info
    count = Counter(node.op_type for node in nodes)
    assert count["LayerNormalization"] == 2 * 6 + 1  # gate, keys, values and queries share the first norm of a layer
    assert count["ScatterND"] == 2 * len(GATED)  # queries to their places, and the layer's result
    (last,) = [node.output[0] for node in nodes if node.op_type == "Add" and any(".5.mlp.fc2" in i for i in node.input)]
    (shape,) = [value.type.tensor_type.shape.dim for value in values if value.name == last]
    assert shape[-2].dim_value == 1  # of the last layer the CLS token alone


@pytest.mark.parametrize(
    "name",
    [
        *("anysize.onnx", "anysize.float16.onnx", "anysize-dense.onnx", "anysize-dense.float16.onnx"),
        *("model.onnx", "model-32.onnx", "masked.onnx"),
    ],
)
def test_graphs_hold_no_weights_and_point_into_the_one_file(name: str, tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / name, load_external_data=False)
    spans = safetensors_spans(tiny_bundle / "weights.safetensors")
    external = [i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    pointed = set()
    for initializer in external:
        entry = {item.key: item.value for item in initializer.external_data}
        assert entry["location"] == "weights.safetensors"
        pointed.add((int(entry["offset"]), int(entry["length"])))
    own = {
        (span.offset, span.length)
        for tensor, span in spans.items()
        if (name != "model-32.onnx" or "pos_embed" not in tensor) and not ("dense" in name and "gates." in tensor)
    }
    assert pointed == own  # every weight, and nothing else
    inline = [i for i in model.graph.initializer if i.data_location != onnx.TensorProto.EXTERNAL]
    resampled = [i for i in inline if i.name.endswith("pos_embed")]
    assert len(resampled) == (0 if name in ("model.onnx", "masked.onnx") else 1)
    assert sum(len(i.raw_data) for i in inline if i not in resampled) < 2_000
    assert str(tiny_bundle.parent) not in str(model)


def test_spans_are_where_the_tensors_are(tiny_bundle: Path) -> None:
    file = tiny_bundle / "weights.safetensors"
    raw, tensors = file.read_bytes(), load_file(file)
    for name, span in safetensors_spans(file).items():
        stored = np.frombuffer(raw[span.offset : span.offset + span.length], np.float16).reshape(span.shape)
        np.testing.assert_array_equal(stored, tensors[name])


def test_the_graph_has_the_contracts_names_and_types(tiny_bundle: Path) -> None:
    for name in ("model.onnx", "masked.onnx"):
        session = ort.InferenceSession(tiny_bundle / name, providers=["CPUExecutionProvider"])
        assert {i.name: i.type for i in session.get_inputs()} == {
            "images": "tensor(uint8)",
            "threshold": "tensor(float)",
        }
        assert {o.name: o.type for o in session.get_outputs()} == {"logits": "tensor(float)", "kept": "tensor(bool)"}
        assert session.get_inputs()[0].shape[1:] == [64, 64, 3]


def test_parity_was_proved_and_written_down(tiny_bundle: Path) -> None:
    parity = json.loads((tiny_bundle / "parity.json").read_text())
    served = {f"anysize.onnx, {size_px} px" for size_px in (64, 32)}
    assert set(parity) == {*served, "model.onnx", "model-32.onnx", "masked.onnx"}
    for figures in parity.values():
        assert figures["holds"]
        assert figures["rows"] == 12 * 6 * 4  # images x thresholds x batch sizes
        assert figures["max_difference"] < 1e-4
        assert figures["identical_masks"] == 1


def test_a_bundle_is_a_checkpoint_and_exports_to_the_same_bundle(
    int8_bundle: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    """With int8 graphs, whose ranges are kept."""
    again = tmp_path / "tiny"
    again.mkdir()
    (again / "model.pt").write_bytes(b"somebody's TorchScript")
    arguments = ["--checkpoint", str(int8_bundle.path), "--out", str(again), "--images", str(toy_images)]
    assert main(arguments) == 0
    before, after = int8_bundle.manifest, load_bundle(again).manifest
    assert before.version == after.version
    assert before == after
    assert (again / "model.pt").exists()


def test_graphs_that_are_kept_are_those_of_the_manifest_and_of_these_weights(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    arguments = ["--checkpoint", str(folder), "--out", str(folder), "--keep-graphs"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["data"] = "measured anew"
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert main(arguments) == 0
    before, after = load_bundle(tiny_bundle).manifest, load_bundle(folder).manifest
    assert after.evaluation.data == "measured anew"
    assert after.version == before.version
    assert "measured anew" in (folder / "README.md").read_text()
    for name in ("model.onnx", "weights.safetensors", "config.json", "parity.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b" ")
        assert main(arguments) == 2
        assert f"{name}: sha256 differs" in capsys.readouterr().err
        (folder / name).write_bytes(content)
    assert main([*arguments, "--calibrate", "anything"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    (folder / "manifest.json").write_text("{}")
    assert main([*arguments, "--origin", "somewhere"]) == 2
    assert "write the graphs anew, without --keep-graphs" in capsys.readouterr().err


def test_the_card_tells_the_table_and_the_origin(tiny_bundle: Path) -> None:
    card = (tiny_bundle / "README.md").read_text()
    rows = json.loads((tiny_bundle / "evaluation.json").read_text())["rows"]
    best = frontier(rows)
    for row in rows:
        patches, lost = {64: 16, 32: 4}[row["size_px"]], rows[0]["top1"] - row["top1"]
        line = (
            f"| {row['size_px']} px | {row['threshold']:g} | {row['skipped_patches']:.1f} of {patches} "
            f"| {100 * (1 - row['macs_ratio']):.1f} % | {100 * row['top1']:.2f} % | {100 * lost:.2f} |"
        )
        assert card.count(line) == (row in best) + (row["size_px"] == 64), line
    assert "Random numbers." in card
    assert "taught by `dense`" in card
    limit = json.loads((tiny_bundle / "train.json").read_text())["config"]["threshold_max"]
    assert f"at thresholds from 0 to {limit} and input sizes in px (64, 32)" in card
    full = load_bundle(tiny_bundle).manifest.full
    assert f"{100 * (full.timm_forward_macs / full.dense_macs - 1):.1f} % more for the same logits" in card


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("evaluation.json", "python -m models.evaluate --checkpoint"),
        ("calibration.json", "--split heldout"),
        ("weights.safetensors", "weights.safetensors is missing"),
        ("config.json", "config.json is missing"),
        ("train.json", "python -m models.train"),
    ],
)
def test_a_missing_piece_is_named_with_the_command_that_makes_it(
    missing: str, message: str, toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(toy_checkpoint, folder)
    (folder / missing).unlink()
    arguments = ["--checkpoint", str(folder), "--out", str(tmp_path / "zoo" / "x"), "--images", str(toy_images)]
    assert main([*arguments, "--origin", "somewhere"]) in (1, 2)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "zoo" / "x").exists()


def test_a_calibration_that_doesnt_fit_the_model_is_refused_before_the_long_work(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(toy_checkpoint, folder)
    calibration = json.loads((folder / "calibration.json").read_text())
    for name in ("rows", "second_looks"):
        calibration[name] = [row for row in calibration[name] if row["size_px"] == 32]
    (folder / "calibration.json").write_text(json.dumps(calibration))
    arguments = ["--checkpoint", str(folder), "--out", str(tmp_path / "x"), "--images", str(toy_images)]
    assert main([*arguments, "--origin", "somewhere"]) in (1, 2)
    assert "no row for threshold 0 at the full size, 64 px" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["my model", ".hidden", "-x", "modèle", "..", "file", "file/model", "a\nb"])
def test_an_out_that_cant_be_a_bundle_is_refused_before_any_work(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("somebody's")
    out = tmp_path / name
    assert main(["--checkpoint", str(tmp_path / "missing"), "--out", str(out), "--origin", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"export: --out {out}: ")
    assert ("file is a file, not a folder" if "file" in name else f"{out.name!r} is no such name") in said
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("kind", "name"), [("onnx", "Vit_s-14.v2"), ("torchscript", "any name")])
def test_a_bundles_name_is_taken_and_any_name_for_torchscript(
    kind: str, name: str, tmp_path: Path, capsys: Capture
) -> None:
    out = str(tmp_path / name)
    assert main(["--checkpoint", str(tmp_path / "missing"), "--out", out, "--format", kind]) == 2
    said = capsys.readouterr().err
    assert "--out" not in said
    assert f"{tmp_path / 'missing'}/" in said  # the next thing that is wrong


def test_a_model_without_gates_and_one_of_another_family_are_refused(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: Capture
) -> None:
    common = ["--out", str(tmp_path / "x"), "--images", str(toy_images), "--origin", "somewhere"]
    assert main(["--checkpoint", str(toy_checkpoint.parent / "dense"), *common]) == 1
    assert "has no gates: train them with" in capsys.readouterr().err
    folder = tmp_path / "other"
    shutil.copytree(toy_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text()) | {"architecture": "resnet18"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["--checkpoint", str(folder), *common]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("export: ")
    assert "resnet18" in last
