"""What a server adds, by hand; and `python -m loadtest.overhead` against services that are processes."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import added, callers, data, memory, objectives, preprocessing
from loadtest.added import Timed
from loadtest.connection import Connection, FailedRequest, get, post
from loadtest.memory import Sample
from loadtest.objectives import Held
from loadtest.overhead import Plan, main
from tests.loadtest.servers import Request, Server, answer, reply, serving

SERVE = f"env SKIPVIT_PORT={{port}} {shlex.quote(sys.executable)} -m tests.service.process"
SMALL = Plan(starts=1, alone=4, repeats=2, photos_px=((64, 48), (128, 96)), beside_px=(640, 480))
BROKEN = """
import asyncio, sys
from tests.loadtest.servers import Server, reply
async def broken(request):
    return reply(b'{"title": "Inference failed"}', 500)
async def serve():
    async with await asyncio.start_server(Server(broken).handle, "127.0.0.1", int(sys.argv[1])) as listener:
        await listener.serve_forever()
asyncio.run(serve())
"""


def timed(latency: float, inference: float, batch_size: int = 1, *, decode: float = 1, queue: float = 2) -> Timed:
    """Milliseconds in; the server's total is 2 ms more than its phases."""
    total = decode + queue + inference + 2
    return Timed(latency / 1e3, decode / 1e3, queue / 1e3, inference / 1e3, total / 1e3, batch_size)


def test_an_answer_is_read_without_rounding() -> None:
    timing = {"decode": 0.4375, "queue": 1.125, "inference": 18.203125, "total": 20.5}
    body = json.dumps({"timing_ms": timing, "batch_size": 7}).encode()
    assert added.read(body, 0.0215) == pytest.approx((0.0215, 0.0004375, 0.001125, 0.018203125, 0.0205, 7), rel=1e-12)


def test_overhead_of_one_caller_is_what_the_engine_does_not_account_for() -> None:
    found = added.alone([timed(26, 20), timed(30, 20), timed(28, 20)])
    assert found == pytest.approx(
        {
            "requests": 3,
            "latency_p50_ms": 28,
            "inference_p50_ms": 20,
            "overhead_p50_ms": 8,
            "overhead_p95_ms": 9.8,
            "decode_p50_ms": 1,
            "queue_p50_ms": 2,
            "rest_of_server_p50_ms": 2,
            "outside_server_p50_ms": 3,
        }
    )


def test_the_engines_images_a_second_count_each_batch_once() -> None:
    answers = [timed(70, 60, 3)] * 3 + [timed(50, 40, 2)] * 2  # two batches: 100 ms for five images
    found = added.together(answers, wall_s=0.125)
    assert found["requests_per_s"] == pytest.approx(40)
    assert found["engine_busy_s"] == pytest.approx(0.1)
    assert found["engine_images_per_s"] == pytest.approx(50)
    assert found["mean_batch_size"] == pytest.approx(2.5)
    assert found["ratio"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        (Held("ratio", 0.95, "", 0.95, at_least=True), "met"),
        (Held("ratio", 0.949, "", 0.95, at_least=True), "MISSED"),
        (Held("start", 3.0, "s", 3.0), "met"),
        (Held("start", 3.001, "s", 3.0), "MISSED"),
        (Held("memory", None, "MB", 700), "not measured"),
    ],
)
def test_a_target_is_met_up_to_its_very_value(held: Held, verdict: str) -> None:
    assert [row["verdict"] for row in objectives.rows([held])] == [verdict]


@pytest.mark.parametrize(("ratio", "spoiled"), [(0.93, False), (1.01, True)])
def test_an_engine_that_is_slower_undisturbed_spoils_the_run_in_words(ratio: float, spoiled: bool) -> None:
    alone = added.alone([timed(26, 20)])
    together = added.together([timed(26, 20)], 0.025) | {
        "query": "threshold=0",
        "concurrency": 32,
        "generator_cpu_ms_per_request": 0.2,
        "generator_shares_cpus": False,
        "undisturbed_images_per_s": 40.0,
        "undisturbed_ratio": ratio,
    }
    beside_nothing = {"healthz_beside_nothing_p50_ms": 0.5, "healthz_beside_nothing_p99_ms": 1}
    held_up = {"image": "photo", "healthz_p50_ms": 1, "healthz_p99_ms": 2} | beside_nothing
    found = {"alone": {"threshold=0": alone}, "together": together, "decoding": [], "held_up": held_up}
    lines = objectives.details(found | {"memory": {"not_measured": "no /proc"}})
    assert any("something else ran" in line for line in lines) is spoiled
    assert not any("share CPUs" in line for line in lines)
    assert lines[-1] == "memory wasn't measured: no /proc"


def test_requests_on_their_way_rise_and_fall_between_one_and_the_most() -> None:
    levels = [memory.level(number) for number in range(2 * memory.PERIOD)]
    assert (min(levels), max(levels)) == (1, memory.MOST_TOGETHER)
    assert levels[0] == levels[memory.PERIOD] == 1
    assert levels[memory.PERIOD // 2] == memory.MOST_TOGETHER
    assert max(abs(after - before) for before, after in zip(levels, levels[1:], strict=False)) == 1


def test_requests_for_the_curve_mix_sizes_and_thresholds_the_same_each_time() -> None:
    asked = memory.requests([b"\x89PNG", b"\xff\xd8\xff"], (28, 14), 200)
    assert asked == memory.requests([b"\x89PNG", b"\xff\xd8\xff"], (28, 14), 200)
    queries = [dict(pair.split("=") for pair in one.split(b" ")[1].decode().split("?")[1].split("&")) for one in asked]
    assert {query["size"] for query in queries} == {"28", "14"}
    thresholds = [float(query["threshold"]) for query in queries]
    assert min(thresholds) < 0.1
    assert 0.65 < max(thresholds) <= memory.MAX_THRESHOLD
    assert {b"image/png", b"image/jpeg"} == {one.partition(b"Content-Type: ")[2].split(b"\r\n")[0] for one in asked}


def test_drift_compares_the_last_third_of_the_answers_with_the_first() -> None:
    memories = [600.0, 610.0, 620.0, 900.0, 640.0, 640.0, 655.0]
    answers = (0, 900, 1900, 3000, 5000, 5900, 6000)
    samples = [Sample(0.0, count, 1, mb) for count, mb in zip(answers, memories, strict=True)]
    found = memory.summarise(samples)
    assert (found["at_start_mb"], found["at_end_mb"], found["most_mb"]) == (600, 655, 900)
    assert found["after_mb"] == {"1000": 620.0, "5000": 640.0}
    assert found["first_third_mb"] == 610
    assert found["last_third_mb"] == 645
    assert found["drift_mb"] == 35


def test_memory_is_the_processs_own() -> None:
    resident, most = memory.resident_mb(os.getpid()), memory.resident_mb(os.getpid(), "VmHWM")
    assert resident is not None
    assert most is not None
    assert 20 < resident <= most
    assert memory.resident_mb(2**30) is None


async def test_an_answer_other_than_200_or_none_is_an_error_that_names_the_request() -> None:
    async def behaviour(request: Request) -> bytes | None:
        return reply(b'{"title": "Queue full"}', 429) if request.number == 0 else None

    with serving(Server(behaviour)) as server:
        async with await Connection.open(server.url) as connection:
            assert json.loads((await connection.ask(get("/readyz"))).body) == {"status": "ready"}
            with pytest.raises(FailedRequest, match=r"POST /v1/classify\?size=28 got 429: .*Queue full"):
                await connection.ask(post("/v1/classify?size=28", b"image", "image/png"))
            with pytest.raises(FailedRequest, match="POST /v1/classify got no whole answer"):
                await connection.ask(post("/v1/classify", b"image", "image/png"))
    with pytest.raises(FailedRequest, match="can't be reached"):
        await Connection.open(server.url)


async def test_callers_stop_at_their_number_and_one_failure_ends_them_all() -> None:
    async def fails_at_twenty(request: Request) -> bytes | None:
        return answer("ant") if request.number < 20 else reply(b"{}", 503)

    with serving(Server(fails_at_twenty)) as server:
        asked = [post(f"/v1/classify?number={number}", b"image", "image/png") for number in range(3)]
        found = await callers.ask_all(server.url, asked, 4, limit=10)
        assert len(found) == len(server.requests) == 10
        assert {request.query["number"] for request in server.requests} == {"0", "1", "2"}
        with pytest.raises(FailedRequest, match="503"):
            await callers.ask_all(server.url, asked, 4, seconds=60)


async def test_memory_is_watched_up_to_the_last_answer_and_a_failure_ends_it() -> None:
    together = most = 0

    async def counts(request: Request) -> bytes:
        nonlocal together, most
        together, most = together + 1, max(most, together + 1)
        await asyncio_turns()
        together -= 1
        return answer("ant") if request.number < 100 else reply(b"{}", 500)

    with serving(Server(counts)) as server:
        asked = memory.requests([b"\x89PNG"], (28,), 100)
        seen: list[int] = []
        samples = await memory.watch(server.url, os.getpid(), asked, lambda: seen.append(1))
        assert samples[-1].answers == len(seen) == len(server.requests) == 100
        assert 1 < most <= max(memory.level(number) for number in range(100))
        with pytest.raises(FailedRequest, match="500"):
            await memory.watch(server.url, os.getpid(), asked, lambda: None)


async def asyncio_turns() -> None:
    """Let the loop take the other requests."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_photos_are_the_same_for_everybody_and_as_large_as_asked() -> None:
    photo = preprocessing.photo(1500, 1000)
    assert photo == preprocessing.photo(1500, 1000)
    assert photo.megapixels == 1.5
    assert data.image_format(photo.encoded) == "jpeg"
    assert 0.15 < len(photo.encoded) / 1.5e6 < 0.6  # bytes a pixel, as photos have at this quality


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A small run of everything, of a service whose engine costs nothing."""
    out = tmp_path_factory.mktemp("overhead")
    return main(["--seconds", "0.3", "--requests", "120", "--serve", SERVE, "--out", str(out)], SMALL), out


def test_the_command_measures_every_part(measured: tuple[int, Path]) -> None:
    code, out = measured
    result: dict[str, Any] = json.loads((out / "overhead.json").read_text())
    assert code == 0
    assert result["model"] == {"name": "fake", "version": "1.0.0"}
    assert 0 < result["start"]["ready_p50_s"] < 60
    assert {query: alone["requests"] for query, alone in result["alone"].items()} == dict.fromkeys(
        ("preset=balanced", "threshold=0"), 4
    )
    together = result["together"]
    assert together["requests"] > 32
    assert 0 < together["ratio"] < 1
    assert together["ratio"] == pytest.approx(together["requests_per_s"] / together["engine_images_per_s"], rel=1e-3)
    assert [row["megapixels"] for row in result["decoding"]] == pytest.approx([0.001024, 0.003072, 0.012288], rel=1e-3)
    assert result["held_up"]["polls"] > 0
    assert 0 < result["held_up"]["healthz_beside_nothing_p50_ms"] <= result["held_up"]["healthz_beside_nothing_p99_ms"]
    assert result["memory"]["requests"] == 120
    assert result["memory"]["sizes_px"] == [28, 14]
    assert result["environment"]["command"].startswith("python -m loadtest.overhead --seconds 0.3")
    assert len(result["targets"]) == 7
    assert (out / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("program", "code"), [(BROKEN, 1), ("raise SystemExit('no model')", 2)])
def test_a_service_that_fails_is_one_line(
    program: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service.py"
    file.write_text(program)
    serve = f"env PYTHONPATH={shlex.quote(str(Path.cwd()))} {shlex.quote(sys.executable)} {file} {{port}}"
    assert main(["--serve", serve, "--out", str(tmp_path / "out")], SMALL) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert ("Inference failed" if code == 1 else "no model") in lines[0]
    assert not (tmp_path / "out" / "overhead.json").exists()


def test_a_measurement_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests", "0"], SMALL) == 2
    assert "--requests is at least 1" in capsys.readouterr().err
