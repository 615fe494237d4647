"""MLPerf's generator and Locust, each in a process of its own, against a toy server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loadtest.servers import Request, Server, answer, good, label_of, reply, serving

ROOT = Path(__file__).parents[2]


def loadgen(server: Server, images: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.loadgen", "--url", server.url, "--data", str(images), "--out", str(out)]
    quick = ["--seconds", "0.3", "--min-queries", "20", *options]
    return subprocess.run([*command, *quick], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline", "Server"])
def test_each_scenario_runs_and_has_an_accuracy_beside_its_verdict(scenario: str, images: Path, tmp_path: Path) -> None:
    async def wrong_about_dogs(request: Request) -> bytes:
        label = label_of(request.body)
        return answer("ant" if label == "dog" else label)

    with serving(Server(wrong_about_dogs)) as server:
        done = loadgen(server, images, tmp_path, "--scenario", scenario, "--rate", "100", "--slo-ms", "5000")
        sent = len(server.requests)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["scenario"] == scenario
    assert result["loadgen"] in ("VALID", "INVALID")
    assert f"LoadGen says {result['loadgen']}" in done.stdout
    assert result["summary"]["outcomes"] == {"ok": sent}
    assert 0.5 < result["summary"]["top1"]["value"] < 1
    assert scenario in (tmp_path / "mlperf_log_summary.txt").read_text().replace(" ", "")


def test_queries_without_an_answer_are_said(images: Path, tmp_path: Path) -> None:
    async def fails(request: Request) -> bytes:
        return reply(b"{}", 500) if request.number % 2 else answer(label_of(request.body))

    with serving(Server(fails)) as server:
        done = loadgen(server, images, tmp_path, "--scenario", "SingleStream")
    assert done.returncode == 1
    assert "not every query was answered" in done.stderr


def test_locust_runs_the_locustfile_and_tells_accuracy(images: Path) -> None:
    with serving(Server(good)) as server:
        command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", server.url, "--headless"]
        command += ["--users", "2", "--spawn-rate", "10", "--run-time", "5s", "--only-summary"]
        mix = {"LOADTEST_DATA": str(images), "LOADTEST_MIX": "threshold=0:1,threshold=0.5:1"}
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | mix, capture_output=True, text=True, check=False, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "threshold=0.5: top-1 100.0 %" in done.stdout
    assert {request.query["threshold"] for request in server.requests} == {"0", "0.5"}
