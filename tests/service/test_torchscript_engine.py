"""TorchScript behind the same protocol: the answers of ONNX Runtime, rows apart, and every broken file refused."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.artifact import Bundle, load_bundle
from service.errors import BundleError, InferenceFailed, SettingsError
from service.onnx_engine import OnnxEngine
from service.served_model import load_engine
from service.settings import Settings
from service.torchscript_engine import TorchScriptEngine, constants, load_module
from service.torchscript_record import RECORD
from tests.fakes import fake_bundle
from tests.images import plain
from tests.service.process import running

LEVELS = (0.0, 0.3, 0.5, 0.7, 1.0)


@pytest.fixture(scope="module")
def torchscript_bundle(tiny_bundle: Path, toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with TorchScript in it, made by `python -m export --format torchscript`."""
    from export.__main__ import main

    path = tmp_path_factory.mktemp("torchscript") / "tiny"
    shutil.copytree(tiny_bundle, path)
    options = ["--checkpoint", str(path), "--out", str(path), "--images", str(toy_images)]
    assert main([*options, "--format", "torchscript"]) == 0
    return path


@pytest.fixture(scope="module")
def bundle(torchscript_bundle: Path) -> Bundle:
    return load_bundle(torchscript_bundle)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> TorchScriptEngine:
    return TorchScriptEngine(bundle, threads=1)


@pytest.fixture(scope="module")
def onnx(bundle: Bundle) -> OnnxEngine:
    return OnnxEngine(bundle, threads=1, provider="cpu")


def noise(rows: int, size_px: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, size_px, size_px, 3), np.uint8)


@pytest.mark.parametrize("size_px", [64, 32])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_it_answers_as_onnx_runtime_does_at_any_mix_of_thresholds(
    size_px: int, rows: int, engine: TorchScriptEngine, onnx: OnnxEngine
) -> None:
    images, threshold = noise(rows, size_px), np.resize(np.array(LEVELS, np.float32), rows)
    ours, theirs = engine.infer(images, threshold), onnx.infer(images, threshold)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
    np.testing.assert_array_equal(ours.kept, theirs.kept)
    assert [(each.dtype, each.shape) for each in ours] == [(each.dtype, each.shape) for each in theirs]


def test_threshold_0_computes_everything_and_1_nothing_that_has_a_gate(
    bundle: Bundle, engine: TorchScriptEngine
) -> None:
    _, kept = engine.infer(noise(2, 64), np.array([0, 1], np.float32))
    assert kept[0].all()
    gated = list(bundle.manifest.gated_layers)
    assert not kept[1, gated].any()


@settings(deadline=None, max_examples=20)
@given(thresholds=st.lists(st.sampled_from(LEVELS), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_a_row_is_the_same_alone_and_in_any_batch(
    engine: TorchScriptEngine, thresholds: list[float], seed: int
) -> None:
    images, threshold = noise(len(thresholds), 64, seed), np.array(thresholds, np.float32)
    together = engine.infer(images, threshold)
    for row in range(len(images)):
        alone = engine.infer(images[row : row + 1], threshold[row : row + 1])
        np.testing.assert_array_equal(alone.kept[0], together.kept[row])
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-4)


def test_images_that_may_not_be_written_to_are_taken(engine: TorchScriptEngine) -> None:
    images = noise(1, 32)
    images.flags.writeable = False
    assert engine.infer(images, np.zeros(1, np.float32)).kept.all()


def test_to_be_ended_does_no_harm_to_the_next_run(engine: TorchScriptEngine) -> None:
    engine.terminate()
    assert engine.infer(noise(1, 32), np.zeros(1, np.float32)).kept.all()


def test_sizes_share_the_memory_of_their_weights(bundle: Bundle, engine: TorchScriptEngine) -> None:
    full, small = (engine._modules[size_px] for size_px in bundle.manifest.sizes_px)
    places = {tensor.data_ptr() for tensor in constants(full)}
    own = [tensor for tensor in constants(small) if tensor.data_ptr() not in places]
    assert len(own) < len(constants(small)) / 10
    alone = constants(load_module(bundle.path / "model-32.pt"))
    assert all(one.equal(other) for one, other in zip(constants(small), alone, strict=True))


def test_a_size_without_a_file_is_an_error(engine: TorchScriptEngine) -> None:
    with pytest.raises(InferenceFailed, match="13 x 13"):
        engine.infer(noise(1, 13), np.zeros(1, np.float32))


def test_what_torch_refuses_is_a_typed_error_of_one_line(engine: TorchScriptEngine) -> None:
    with pytest.raises(InferenceFailed, match="TorchScript failed: .*size of tensor a") as caught:
        engine.infer(noise(2, 64), np.zeros(3, np.float32))
    assert "\n" not in str(caught.value)


def test_an_output_unlike_the_manifest_is_an_error(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"labels": ("one", "two")})
    engine = TorchScriptEngine(Bundle(path=bundle.path, manifest=manifest), threads=1)
    with pytest.raises(InferenceFailed, match="unlike the manifest"):
        engine.infer(noise(1, 64), np.zeros(1, np.float32))


def edited(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (RECORD, Path.unlink, "torchscript.json is missing"),
        (RECORD, cut_short, "torchscript.json: "),
        ("model-32.pt", Path.unlink, "model-32.pt can't be read"),
        ("model.pt", edited, "model.pt: sha256 differs"),
        ("model.pt", cut_short, "model.pt: .* bytes, torchscript.json says"),
    ],
)
def test_a_missing_or_broken_file_is_named_with_the_mend(
    name: str, change: Callable[[Path], None], message: str, torchscript_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(torchscript_bundle, tmp_path / "tiny"))
    change(path / name)
    assert refusal(path, message).count(f"--out {path} --format torchscript") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle_version": "0123456789ab"}, "is of the bundle's version 0123456789ab, which now is"),
        ({"schema_version": 2}, "schema_version"),
        ({"files": {}}, "has no model.pt, for 64 px"),
    ],
)
def test_a_record_that_doesnt_fit_the_bundle_is_refused(
    change: dict[str, object], message: str, torchscript_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(torchscript_bundle, tmp_path / "tiny"))
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps({**record, **change}))
    assert "--format torchscript" in refusal(path, message)


def test_a_file_that_torch_cant_load_is_named(torchscript_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(torchscript_bundle, tmp_path / "tiny"))
    record = json.loads((path / RECORD).read_text())
    (path / "model.pt").write_bytes(b"")
    record["files"]["model.pt"] = {
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "size_bytes": 0,
    }
    (path / RECORD).write_text(json.dumps(record))
    refusal(path, "model.pt: torch .* can't load it: ")


def refusal(path: Path, message: str) -> str:
    with pytest.raises(BundleError, match=message) as caught:
        TorchScriptEngine(load_bundle(path), threads=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_int8_is_refused_by_both_settings_names() -> None:
    with pytest.raises(SettingsError, match=r"SKIPVIT_PRECISION=int8 .* SKIPVIT_ENGINE=torchscript"):
        load_engine(Settings(engine="torchscript", precision="int8"), fake_bundle())


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("onnxruntime", "onnxruntime", "service-cpu"), ("torchscript", "torch", "service-torch")],
)
def test_a_runtime_that_isnt_installed_is_named_with_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what an import meets where it isn't installed
    with pytest.raises(SettingsError, match=rf"SKIPVIT_ENGINE={name} needs {package}, .*{extra}"):
        load_engine(Settings.model_validate({"engine": name}), fake_bundle())


def test_a_process_serves_from_torchscript_and_says_so(torchscript_bundle: Path) -> None:
    environment = {
        "SKIPVIT_ENGINE": "torchscript",
        "SKIPVIT_PORT": "0",
        "SKIPVIT_MODEL_REPOSITORY": str(torchscript_bundle.parent),
        "SKIPVIT_DEFAULT_MODEL": "tiny",
        "SKIPVIT_MAX_BATCH_SIZE": "2",
        "SKIPVIT_DRAIN_DELAY_S": "0",
    }
    with running([sys.executable, "-W", "error", "-m", "service"], environment) as server:
        ask = urllib.request.Request(f"{server.url}/v1/classify?threshold=0.5", plain(), {"Content-Type": "image/png"})
        with urllib.request.urlopen(ask, timeout=30) as response:
            (result,) = json.load(response)["results"]
        assert result["predictions"][0]["label"] in ("blue", "green", "red")
        assert result["skipped_patches"]["patches"] == 16
        with urllib.request.urlopen(f"{server.url}/v2/models/tiny/config", timeout=30) as response:
            config = json.load(response)
        assert (config["platform"], config["backend"]) == ("pytorch_libtorch", "pytorch")
        code, log = server.stop()
    assert code == 0, log
