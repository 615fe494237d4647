"""`python -m loadtest` against servers on real ports: good ones, slow ones, and all kinds of bad ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from loadtest import data
from loadtest.__main__ import main
from loadtest.arrivals import Arrivals, schedule
from loadtest.mix import Mix
from loadtest.run import Job, run
from loadtest.targets import Classify, plain
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.loadtest.servers import LABELS, Behaviour, Request, Server, answer, good, label_of, reply, serving
from tests.service.live import live_server
from tests.service.test_gate import KEY, LINE

STALL_S = 0.6


def measure(server: Server, images: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command line against a server; its exit code and result."""
    code = main(["--url", server.url, "--data", str(images), "--out", str(out / "result.json"), *options])
    file = out / "result.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def test_every_request_of_the_schedule_is_sent_and_held_against_its_label(images: Path, tmp_path: Path) -> None:
    async def wrong_about_dogs(request: Request) -> bytes:
        label = label_of(request.body)
        return answer("ant" if label == "dog" else label, threshold=float(request.query["threshold"]))

    with serving(Server(wrong_about_dogs)) as server:
        code, result = measure(server, images, tmp_path, "--rate", "120", "--seconds", "1", "--mix", "threshold=0.5")
    assert code == 0
    summary = result["summary"]
    assert summary["outcomes"] == {"ok": len(schedule(Arrivals("poisson", 120, 1), 0))}
    assert summary["outcomes"]["ok"] == len(server.requests)
    assert summary["top1"]["value"] == pytest.approx(0.75, abs=0.06)  # shuffled rounds of 12 images, a quarter dogs
    assert summary["top1"]["images"] == 12
    assert summary["top5"]["value"] == 1
    assert summary["skipped_ratio"] == 0.5
    assert summary["points"]["threshold=0.5"]["skipped_per_layer"] == [0, 0.5, 0.5]
    assert summary["phases"]["inference"]["p50"] == pytest.approx(0.0003)
    assert set(result["environment"]) >= {"command", "commit", "cpu", "instructions", "cpus", "packages"}
    assert {request.headers["content-type"] for request in server.requests} == {"image/png"}


def test_a_stall_shows_in_the_p99_because_latency_counts_from_when_a_request_was_due(images: Path) -> None:
    """The server handles one request at a time and stalls once: everyone due meanwhile has waited, too."""
    turn = asyncio.Lock()

    async def stalls_once(request: Request) -> bytes:
        async with turn:
            if request.number == 10:
                await asyncio.sleep(STALL_S)
            return answer(label_of(request.body))

    with serving(Server(stalls_once)) as server:
        job = Job(arrivals=Arrivals("constant", 100, 2))
        summary = run(job, data.load(str(images)), Classify(server.url), quiet=True).summary
    assert summary["latency_s"]["max"] > 0.9 * STALL_S
    assert summary["latency_s"]["p99"] > 0.8 * STALL_S  # one slow request among 200 alone would leave it below
    assert summary["latency_s"]["p90"] > 0.3 * STALL_S
    assert summary["latency_s"]["p50"] < 0.5 * STALL_S


def test_a_closed_loop_keeps_its_callers_busy_and_stops_at_its_number(images: Path, tmp_path: Path) -> None:
    together = most = 0

    async def counts(request: Request) -> bytes:
        nonlocal together, most
        together, most = together + 1, max(most, together + 1)
        await asyncio.sleep(0.001)
        together -= 1
        return answer(label_of(request.body))

    with serving(Server(counts)) as server:
        code, result = measure(server, images, tmp_path, "--concurrency", "3", "--requests", "50", "--seconds", "30")
    assert (code, result["summary"]["requests"], most) == (0, 50, 3)
    assert result["summary"]["lag"]["valid"]


def test_mix_formats_sizes_deadlines_and_impatience_go_over_the_wire(images: Path, tmp_path: Path) -> None:
    with serving(Server(good)) as server:
        mix = "threshold=0.25:1,preset=economy:1"
        options = ["--mix", mix, "--degrade", "false", "--formats", "png:1,webp:1", "--sizes", "original:1,56:1"]
        code, _ = measure(
            server, images, tmp_path, *options, "--deadlines-ms", "none:1,900:1", "--rate", "100", "--seconds", "1"
        )
    assert code == 0
    queries = {tuple(sorted(request.query.items())) for request in server.requests}
    assert queries == {(("degrade", "false"), ("threshold", "0.25")), (("degrade", "false"), ("preset", "economy"))}
    assert {request.headers["content-type"] for request in server.requests} == {"image/png", "image/webp"}
    assert {request.headers.get("x-request-timeout-ms") for request in server.requests} == {None, "900"}


def test_callers_that_hang_up_are_counted_as_such(images: Path, tmp_path: Path) -> None:
    async def never(request: Request) -> bytes:
        await asyncio.sleep(60)
        return b""

    with serving(Server(never)) as server:
        options = ["--cancel-rate", "1", "--cancel-after-ms", "20", "--rate", "40", "--seconds", "0.5"]
        code, result = measure(server, images, tmp_path, *options)
    assert code == 0
    assert set(result["summary"]["outcomes"]) == {"cancelled"}


async def resets(request: Request) -> bytes | None:
    return None if request.number % 2 else answer(label_of(request.body))


async def garbage(request: Request) -> bytes:
    return reply(b"<html>hello</html>") if request.number % 2 else answer(label_of(request.body))


async def no_http(request: Request) -> bytes:
    return b"\x00\xff nonsense\r\n\r\n" if request.number % 2 else answer(label_of(request.body))


async def empty_results(request: Request) -> bytes:
    return reply(b'{"results": []}') if request.number % 2 else answer(label_of(request.body))


async def fails(request: Request) -> bytes:
    return reply(b'{"title": "Internal error"}', 500) if request.number % 2 else answer(label_of(request.body))


async def refuses_the_input(request: Request) -> bytes:
    return reply(b'{"title": "Bad parameter"}', 422) if request.number % 2 else answer(label_of(request.body))


@pytest.mark.parametrize(
    ("behaviour", "outcome", "line"),
    [
        (resets, "connection", "connection: "),
        (garbage, "garbage", "garbage: status 200 with '<html>hello</html>'"),
        (no_http, "garbage", "garbage: "),
        (empty_results, "garbage", "garbage: status 200"),
        (fails, "failed", "500 Internal error"),
        (refuses_the_input, "invalid", "422 Bad parameter"),
    ],
)
def test_a_misbehaving_server_is_named_and_what_was_good_is_kept(
    behaviour: Behaviour, outcome: str, line: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Server(behaviour)) as server:
        code, result = measure(server, images, tmp_path, "--rate", "60", "--seconds", "0.7")
    assert code == 1
    counts = result["summary"]["outcomes"]
    assert counts["ok"] > 5
    assert counts[outcome] > 5
    assert counts["ok"] + counts[outcome] == result["summary"]["requests"]
    said = capsys.readouterr().err
    assert "the server misbehaved" in said
    assert line in said
    assert "Traceback" not in said


@pytest.mark.parametrize("status", [429, 503, 504])
def test_refusals_and_lateness_are_results_and_no_failure(status: int, images: Path, tmp_path: Path) -> None:
    async def overloaded(request: Request) -> bytes:
        return reply(b'{"title": "Busy"}', status) if request.number % 3 else answer(label_of(request.body))

    with serving(Server(overloaded)) as server:
        code, result = measure(server, images, tmp_path, "--rate", "60", "--seconds", "0.7")
    assert code == 0
    assert result["summary"]["errors"] == {
        f"{status} Busy": result["summary"]["requests"] - result["summary"]["outcomes"]["ok"]
    }


def test_a_server_that_dies_ends_the_run_and_what_was_measured_is_kept(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def dies(request: Request) -> bytes | None:
        return answer(label_of(request.body)) if request.number < 10 else None

    with serving(Server(dies)) as server:
        code, result = measure(server, images, tmp_path, "--rate", "200", "--seconds", "60")
    assert code == 1
    assert result["summary"]["outcomes"]["ok"] == 10
    assert result["summary"]["requests"] < 1000
    assert "ended early: 50 requests in a row got no answer" in capsys.readouterr().err


def test_a_signal_ends_the_run_and_what_was_measured_is_kept(images: Path, tmp_path: Path) -> None:
    async def interrupts(request: Request) -> bytes:
        if request.number == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(label_of(request.body))

    before = signal.getsignal(signal.SIGINT)
    with serving(Server(interrupts)) as server:
        code, result = measure(server, images, tmp_path, "--rate", "100", "--seconds", "60")
    assert code == 1
    assert 20 < result["summary"]["requests"] < 1000
    assert signal.getsignal(signal.SIGINT) is before


def test_nobody_there_is_one_line(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert main(["--url", f"http://127.0.0.1:{port}", "--data", str(images)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("loadtest: ")
    assert "can't be reached" in said
    assert said.count("\n") == 1


def test_other_labels_are_refused_before_anything_is_sent(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server(good, labels=("ant", "bee", "cow"))) as server:
        assert main(["--url", server.url, "--data", str(images)]) == 2
    assert "2 of the labels of images" in (said := capsys.readouterr().err)
    assert "cat, dog" in said
    assert not server.requests


@pytest.mark.parametrize(
    "options",
    [
        ["--mix", "colour=red"],
        ["--rate", "0"],
        ["--requests", "5"],
        ["--cancel-rate", "2"],
        ["--formats", "bmp"],
        ["--data", "./nowhere"],
        ["--trace", "nowhere.csv"],
        ["--headers", "nowhere.txt"],
        ["--headers", __file__],
    ],
)
def test_input_that_cant_be_used_is_one_line(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server(good)) as server:
        assert main(["--url", server.url, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


async def test_a_locked_service_is_measured_with_its_key(images: Path, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text(f"\nX-API-Key: {KEY}\n")
    command = ["--data", str(images), "--rate", "20", "--seconds", "0.5"]
    async with live_server(FakeEngine(), Settings(drain_delay_s=0, api_keys=SecretStr(LINE))) as live:
        command += ["--url", f"http://127.0.0.1:{live.port}"]
        assert await asyncio.to_thread(main, command) == 2
        assert await asyncio.to_thread(main, [*command, "--headers", str(tmp_path / "headers")]) == 0


async def test_the_real_service_is_understood(images: Path) -> None:
    """Everything a summary holds, out of the answers of the service itself, on a real port."""
    async with live_server(FakeEngine(), Settings(drain_delay_s=0)) as live:
        job = Job(Mix(points=(("threshold=0.5", 1.0),)), Arrivals("poisson", 50, 0.6), slo_s=30)
        target = Classify(f"http://127.0.0.1:{live.port}")
        found = await asyncio.to_thread(run, job, data.load(str(images)), target, quiet=True)
        model = await asyncio.to_thread(target.describe)
    summary = found.summary
    assert summary["healthy"]
    assert summary["top1"]["value"] == 1
    assert summary["skipped_ratio"] == 0.5
    assert summary["points"]["threshold=0.5"]["skipped_per_layer"] == [0, 0.5, 0.5]
    assert 0 < summary["macs_ratio"] < 1
    assert summary["degraded_ratio"] == 0
    assert summary["phases"]["total"]["p50"] < summary["latency_s"]["p50"]
    assert summary["batch_size"] >= 1
    assert [plain(label) for label in model["labels"]] == list(LABELS)


def test_the_generator_leaves_no_thread_behind(images: Path) -> None:
    with serving(Server(good)) as server:
        before = threading.active_count()
        run(Job(arrivals=Arrivals("poisson", 50, 0.2)), data.load(str(images)), Classify(server.url), quiet=True)
        assert threading.active_count() == before


def test_neither_torch_nor_another_room_is_loaded() -> None:
    code = (
        "import sys, loadtest.__main__, loadtest.sweep, loadtest.merge, loadtest.peers.__main__;"
        "print([m for m in ('torch', 'service', 'models', 'export', 'datasets', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
