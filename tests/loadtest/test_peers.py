"""The comparison with other servers, on toys; and what the peers share, on a real graph."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from export import benchmark
from loadtest.peers.__main__ import Form, main
from service.artifact import load_bundle
from service.preprocess import ImageLimits, decode, resize_crop
from tests.images import encode, gradient

TOY = """
import asyncio, signal, sys
from tests.loadtest.servers import Server, answer
async def ant(request):
    assert b'name="image"' in request.body and request.headers["content-type"].startswith("multipart/form-data")
    return answer("ant")
async def serve():
    listener = await asyncio.start_server(Server(ant).handle, "127.0.0.1", int(sys.argv[1]))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
asyncio.run(serve())
"""


def compare(images: Path, out: Path, *options: str) -> int:
    """The command line, with a toy as our service."""
    program, dense = out / "toy.py", out / "dense.onnx"
    program.write_text(TOY)
    dense.write_bytes(b"")
    serve = f"env PYTHONPATH={Path.cwd()} {sys.executable} {program} {{port}}"
    shared = ["--data", str(images), "--dense", str(dense), "--out", str(out), "--serve", serve]
    return main([*shared, "--rates", "40", "--seconds", "0.4", "--rounds", "1", *options])


def test_ours_is_measured_at_each_setting_and_rate(images: Path, tmp_path: Path) -> None:
    assert compare(images, tmp_path, "--peers", "") == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    measured = [(row["server"], row["rate"]) for row in result["rows"]]
    names = ("ours", "ours, balanced", "ours, balanced, int8", "ours, adaptive")
    assert measured == [(name, rate) for name in names for rate in ("capacity", "40")]
    assert result["rows"][0]["summary"]["top1"]["value"] == pytest.approx(0.25, abs=0.05)
    assert len((tmp_path / "peers.csv").read_text().splitlines()) == 1 + len(measured)


def test_the_requests_of_all_rounds_are_summarised_together(images: Path, tmp_path: Path) -> None:
    assert compare(images, tmp_path, "--peers", "", "--rounds", "2") == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    assert result["rounds"] == 2
    assert len(result["rows"]) == 8
    for row in result["rows"]:
        low, high = sorted(row["rounds_rps"])
        assert low <= row["summary"]["throughput_rps"] <= high + 1e-3
        assert row["summary"]["duration_s"] == pytest.approx(0.4 if row["rate"] == "capacity" else 0.8)
        assert row["summary"]["requests"] == sum(row["summary"]["outcomes"].values())
    assert result["rows"][1]["summary"]["requests"] > 1.2 * 0.4 * 40


def test_a_peer_that_isnt_installed_is_left_out_and_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = ("--peers", "litserve", "--python", shutil.which("false") or "", "--rounds", "2")
    assert compare(images, tmp_path, *peers) == 1
    assert "litserve is left out: the service ended with exit code 1" in capsys.readouterr().err
    result = json.loads((tmp_path / "peers.json").read_text())
    assert result["missing"] == ["litserve"]
    assert len(result["rows"]) == 8


def test_what_cant_be_compared_is_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dense", str(tmp_path / "none.onnx")]) == 2
    assert "--write-dense" in capsys.readouterr().err
    assert compare(images, tmp_path, "--peers", "torchserve") == 2
    assert "unknown peer 'torchserve'" in capsys.readouterr().err


def test_answers_of_every_shape_are_read() -> None:
    form = Form("http://127.0.0.1:1")
    one = {"predictions": [{"label": "ant"}, {"label": "bee"}]}
    for document in (one, [one], {"results": [one]}):
        assert form.read(json.dumps(document).encode()).labels == ["ant", "bee"]


def test_peers_decode_as_our_service_does_and_answer_as_the_dense_model(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, bundle = tmp_path / "dense.onnx", load_bundle(tiny_bundle)
    assert benchmark.main(["--bundle", str(tiny_bundle), "--write-dense", str(tmp_path)]) == 0
    (tmp_path / "labels.txt").write_text("\n".join(bundle.manifest.labels))
    settings = {"PEER_MODEL": str(file), "PEER_LABELS": str(tmp_path / "labels.txt"), "PEER_THREADS": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    from loadtest.peers.dense import DenseModel

    model = DenseModel()
    image = encode(gradient(50, 40), "PNG")
    expected = resize_crop(decode(image, ImageLimits(1 << 20, 1 << 20)), bundle.manifest.full.size_px)
    np.testing.assert_array_equal(model.decode(image), expected)
    np.testing.assert_array_equal(model.decode(Image.open(io.BytesIO(image))), expected)
    (answer,) = model.classify([expected])
    (logits,) = ort.InferenceSession(file).run(None, {"images": expected[None]})
    assert answer["predictions"][0]["label"] == bundle.manifest.labels[int(logits[0].argmax())]
    assert sum(item["probability"] for item in answer["predictions"]) == pytest.approx(1, abs=1e-5)
