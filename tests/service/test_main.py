from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from service.__main__ import main
from tests.fakes import write_bundle
from tests.images import plain


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run `main`, which must refuse; its one line."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("skipvit: ")
    return captured.err


def test_a_wrong_variable_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPVIT_MAX_BATCH_SIZE", "many")
    assert "SKIPVIT_MAX_BATCH_SIZE='many'" in refused(capsys)


def test_a_wrong_option_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "SKIPVIT_PORT='http'" in refused(capsys, "--port", "http")


def test_a_missing_bundle_is_one_line_with_the_mend(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "--model-repository", str(tmp_path), "--model", "absent")
    assert str(tmp_path / "absent") in line
    assert "make export" in line


def test_a_corrupt_file_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_bundle(tmp_path)
    (path / "weights.safetensors").write_bytes(b"")
    assert "weights.safetensors" in refused(capsys, "--model-repository", str(tmp_path), "--model", "fake")


def test_a_graph_that_isnt_one_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_bundle(tmp_path)
    line = refused(capsys, "--model-repository", str(tmp_path), "--model", "fake")
    assert "anysize.onnx" in line
    assert "ONNX Runtime" in line


def test_a_default_preset_the_bundle_lacks_is_refused_at_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_bundle(tmp_path, presets={"full": {"size_px": 28, "threshold": 0.0}})
    assert "SKIPVIT_DEFAULT_PRESET" in refused(capsys, "--model-repository", str(tmp_path), "--model", "fake")


def test_a_port_for_grpc_without_its_extra_is_one_line_with_the_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPVIT_GRPC_PORT", "8001")
    monkeypatch.setitem(sys.modules, "grpc", None)  # what an import meets where it isn't installed
    assert "SKIPVIT_GRPC_PORT=8001 needs the extra `grpc`" in refused(capsys)


@pytest.mark.parametrize("name", ["port", "metrics-port", "grpc-port"])
def test_a_port_that_is_taken_is_one_line_before_anything_loads(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"port": 0, name: port}
        options = [text for option, value in ports.items() for text in (f"--{option}", str(value))]
        line = refused(capsys, *options, "--model", "absent")
    assert f"SKIPVIT_{name.upper().replace('-', '_')}={port} on SKIPVIT_HOST=127.0.0.1: " in line


def test_one_port_for_two_listeners_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert f"SKIPVIT_METRICS_PORT={port}" in refused(capsys, "--port", port, "--metrics-port", port)


def test_a_host_that_isnt_one_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "SKIPVIT_HOST=999.1.1.1" in refused(capsys, "--host", "999.1.1.1")


def test_the_configuration_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-config", "--port", "1234"]) == 0
    assert json.loads(capsys.readouterr().out)["port"] == 1234


def test_what_is_imported_before_the_model_loads_brings_no_web_framework() -> None:
    code = "import sys, service.__main__; print([m for m in ('fastapi', 'starlette', 'uvicorn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_tells_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--print-config" in capsys.readouterr().out


def test_a_broken_bundle_ends_the_process_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--model-repository", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_real_process_serves_and_exits_0_on_sigterm(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "service", "--port", "0", "--model", tiny_bundle.name, "--threads", "1"]
    environment = os.environ | {
        "SKIPVIT_MODEL_REPOSITORY": str(tiny_bundle.parent),
        "SKIPVIT_DRAIN_DELAY_S": "0.2",
        "SKIPVIT_MAX_BATCH_SIZE": "2",
    }
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            port = 0
            for line in process.stderr:
                if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    port = int(found[1])
                    break
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/classify", plain(), {"Content-Type": "image/png"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert response.status == 200
                assert json.load(response)["model"]["name"] == tiny_bundle.name
            process.send_signal(signal.SIGTERM)
            log = process.stderr.read()
            assert process.wait(30) == 0, log
            assert "Traceback" not in log
        finally:
            process.kill()
