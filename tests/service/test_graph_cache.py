"""Optimised graphs are kept, found again, and made anew where they are stale, damaged or can't be kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service import graph_cache
from service.artifact import Bundle
from service.errors import BundleError
from service.onnx_engine import OnnxEngine

GRAPHS = 2  # of a bundle: with gates and without
NAME = "tiny"


def answers(bundle: Bundle, cache: Path | None, precision: str = "int8") -> tuple[np.ndarray, np.ndarray]:
    engine = OnnxEngine(bundle, threads=1, precision=precision, provider="cpu", cache=cache)  # type: ignore[arg-type]
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    return engine.infer(images, np.array([0, 0.2, 0.5, 0.7, 1], np.float32))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What sessions are made of."""
    made: list[Path] = []
    session = ort.InferenceSession

    def spy(file: Path, *rest: object, **more: object) -> ort.InferenceSession:
        made.append(Path(file))
        return session(file, *rest, **more)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    return made


def test_the_second_start_loads_what_the_first_has_kept(int8_bundle: Bundle, tmp_path: Path, loads: list[Path]) -> None:
    cache = tmp_path / "not" / "yet"
    plain, first = answers(int8_bundle, None), answers(int8_bundle, cache)
    kept = sorted((cache / NAME).iterdir())
    assert len(kept) == GRAPHS
    assert all(file.suffix == ".onnx" for file in kept)
    loads.clear()
    second = answers(int8_bundle, cache)
    assert sorted(loads) == kept
    assert sorted((cache / NAME).iterdir()) == kept
    for found in (first, second):
        assert np.array_equal(found[0], plain[0])
        assert np.array_equal(found[1], plain[1])


def test_a_damaged_file_is_made_anew(int8_bundle: Bundle, tmp_path: Path) -> None:
    expected = answers(int8_bundle, tmp_path)
    for kept in (tmp_path / NAME).iterdir():
        whole = kept.read_bytes()
        kept.write_bytes(whole[: len(whole) // 2])
    assert np.array_equal(answers(int8_bundle, tmp_path)[0], expected[0])
    assert len(list((tmp_path / NAME).iterdir())) == GRAPHS
    for kept in (tmp_path / NAME).iterdir():
        assert kept.stem.endswith(graph_cache._digest(kept.read_bytes()))


def test_a_file_that_the_runtime_refuses_is_made_anew(
    int8_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers(int8_bundle, tmp_path)
    for kept in list((tmp_path / NAME).iterdir()):
        start = kept.stem.rpartition("-")[0]
        kept.unlink()
        (tmp_path / NAME / f"{start}-{graph_cache._digest(b'no graph')}.onnx").write_bytes(b"no graph")
    answers(int8_bundle, tmp_path)
    assert "made anew" in caplog.text
    assert all(kept.read_bytes() != b"no graph" for kept in (tmp_path / NAME).iterdir())
    assert len(list((tmp_path / NAME).iterdir())) == GRAPHS


@pytest.mark.parametrize("what", ["runtime", "cpu", "weights"])
def test_what_was_made_by_or_of_something_else_is_replaced(
    what: str, int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[Path]
) -> None:
    answers(int8_bundle, tmp_path)
    before = sorted((tmp_path / NAME).iterdir())
    bundle = int8_bundle
    if what == "runtime":
        monkeypatch.setattr(ort, "__version__", "0.0.1")
    elif what == "cpu":
        monkeypatch.setattr(graph_cache, "_cpu", lambda: "another")
    else:
        digest = bundle.manifest.files["weights.safetensors"].model_copy(update={"sha256": "0" * 64})
        files = bundle.manifest.files | {"weights.safetensors": digest}
        bundle = Bundle(path=bundle.path, manifest=bundle.manifest.model_copy(update={"files": files}))
    loads.clear()
    answers(bundle, tmp_path)
    assert not set(loads) & set(before)
    after = sorted((tmp_path / NAME).iterdir())
    assert len(after) == GRAPHS
    assert not set(after) & set(before)


def test_where_nothing_can_be_kept_graphs_load_as_ever(
    int8_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(int8_bundle, None)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv("HOME", raising=False)
    for cache in (Path("/dev/null"), tmp_path / "file" / "below", Path("~nobody-of-this-name/cache")):
        assert np.array_equal(answers(int8_bundle, cache)[0], expected[0])


def test_a_folder_is_made_where_it_can_be_used_and_none_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert graph_cache.usable(Path("~/a/b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    for folder in (None, Path("/dev/null"), tmp_path / "file" / "below", Path("~nobody-of-this-name/cache")):
        assert graph_cache.usable(folder) is None
    monkeypatch.setattr("os.access", lambda *_: False)
    assert graph_cache.usable(tmp_path) is None


def test_float32_is_loaded_from_the_bundle(int8_bundle: Bundle, tmp_path: Path) -> None:
    answers(int8_bundle, tmp_path, "float32")
    assert not (tmp_path / NAME).exists()


def test_a_broken_graph_is_still_the_bundles_fault(int8_bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "tiny"
    shutil.copytree(int8_bundle.path, broken)
    (broken / int8_bundle.manifest.served["int8"]).write_bytes(b"no graph")
    with pytest.raises(BundleError, match="can't load it"):
        OnnxEngine(
            Bundle(path=broken, manifest=int8_bundle.manifest),
            threads=1,
            precision="int8",
            provider="cpu",
            cache=tmp_path / "cache",
        )
    assert list((tmp_path / "cache" / NAME).iterdir()) == []
