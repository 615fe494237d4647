"""A sweep from end to end on toy servers: what it asks, keeps and draws, how it goes on, and what the gate says."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtest import check, plots
from loadtest.check import ratios, regressions
from loadtest.grid import Cell, Rate, Spec, cells, parse_rate, seconds_each
from loadtest.run import Outcome, run
from loadtest.sweep import main
from tests.loadtest.servers import Request, Server, answer, good, label_of, serving

DEGRADE = json.dumps({"paths": {"/v1/classify": {"post": {"parameters": [{"name": "degrade"}]}}}})
GRID = ["--thresholds", "0,.5", "--presets", "", "--rates", "40,80", "--ramp", "60", "--seconds", "0.4"]
SMALL = [*GRID, "--rates", "60"]


async def slower_when_exact(request: Request) -> bytes:
    """Less compute, sooner: what a sweep is there to show."""
    threshold = float(request.query.get("threshold", 0.5 if request.query.get("degrade") == "true" else 0))
    await asyncio.sleep(0.06 * (1 - threshold))  # so much that a busy machine can't turn it round
    return answer(label_of(request.body), threshold=threshold, degraded=request.query.get("degrade") == "true")


def sweep(server: Server, images: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command line against a server; its exit code and result."""
    code = main(["--url", server.url, "--data", str(images), "--out", str(out), *GRID, *options])
    return code, json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def swept(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete sweep."""
    out = tmp_path_factory.mktemp("sweep")
    with serving(Server(slower_when_exact, openapi=DEGRADE)) as server:
        code, result = sweep(server, images, out)
    assert code == 0
    assert result["complete"]
    return out


def result_of(folder: Path) -> dict[str, Any]:
    """A sweep's result."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_every_cell_is_measured_with_fixed_and_with_adaptive_compute(swept: Path) -> None:
    result = result_of(swept)
    kinds = Counter((row["kind"], row["adaptive"]) for row in result["cells"])
    assert kinds == {
        ("capacity", False): 2,
        ("steady", False): 4,
        ("ramp", False): 1,
        ("steady", True): 2,
        ("ramp", True): 1,
    }
    assert result["adaptive_by"] == "degrade"
    for row in result["cells"]:
        assert row["summary"]["degraded_ratio"] == float(row["adaptive"])
        assert row["summary"]["healthy"]
    capacity = {row["query"]: row["summary"]["throughput_rps"] for row in result["cells"] if row["kind"] == "capacity"}
    assert capacity["threshold=0.5"] > capacity["threshold=0"]


def test_pictures_page_and_tables_are_written(swept: Path) -> None:
    names = ["latency_against_rate", "accuracy_against_latency", "adaptive_ramp", "skipped_per_layer"]
    for name in names:
        with Image.open(swept / f"{name}.png") as picture:
            assert picture.width >= 1000
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50  # drawn, not blank
    page = (swept / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert "http://" not in page.replace(result_of(swept)["environment"]["command"], "")
    assert 'src="data:' in page
    lines = (swept / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(result_of(swept)["cells"])


def test_names_of_operating_points_hide_none_of_them(swept: Path) -> None:
    figure = plots.accuracy_against_latency(result_of(swept))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    names = [text.get_window_extent().x1 for text in axis.texts]
    points = [axis.transData.transform(line.get_xydata())[:, 0] for line in axis.lines if line.get_marker() != "None"]
    assert len(names) == 2
    assert max(names) < np.concatenate(points).min()


def test_titles_say_what_was_found(swept: Path) -> None:
    result = result_of(swept)
    titles = [draw(result).get_suptitle() for draw in plots.figures(result).values()]
    assert titles[0].startswith("99 % within 250 ms: 80 requests/s at threshold 0")
    assert re.match(
        r"p99 at \d+ arrivals/s: \d+ ms at threshold 0 \(100.0\s%\sright\), \d+ ms at threshold 0.5", titles[1]
    )
    assert "% with fixed compute" in titles[2]
    assert "threshold 0.5" in titles[3]


def test_a_stopped_sweep_goes_on_where_it_was(images: Path, tmp_path: Path) -> None:
    """The server dies in the middle; the same command measures what is missing, and only that."""

    async def dies(request: Request) -> bytes | None:
        return await good(request) if request.query["threshold"] == "0" else None

    with serving(Server(dies)) as server:
        code, partial = sweep(server, images, tmp_path)
    assert code == 1
    assert not partial["complete"]
    assert partial["cells"][0]["summary"]["healthy"]
    assert (tmp_path / "report.html").exists()
    kept = sorted(file.name for file in (tmp_path / "points").iterdir())
    before = {name: (tmp_path / "points" / name).read_text() for name in kept}
    assert kept

    with serving(Server(good)) as server:
        code, whole = sweep(server, images, tmp_path)
        asked_again = {request.query["threshold"] for request in server.requests[:1]}
    assert code == 0
    assert whole["complete"]
    assert asked_again == {"0.5"}  # capacity at threshold 0 was there already
    assert {name: (tmp_path / "points" / name).read_text() for name in kept} == before

    with serving(Server(good)) as server:  # complete: the next one is a new measurement
        sweep(server, images, tmp_path, *SMALL)
        assert server.requests[0].query["threshold"] == "0"


def test_a_run_whose_generator_was_late_is_repeated_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[str] = Counter()

    def late_at_first(*args: Any, label: str, **options: Any) -> Outcome:
        outcome = run(*args, label=label, **options)
        runs[label] += 1
        always = label == "steady_threshold-0.5_60"
        outcome.summary["lag"] |= {"ratio": 0.02, "valid": runs[label] > 1 and not always}
        return outcome

    monkeypatch.setattr("loadtest.sweep.run", late_at_first)
    with serving(Server(good)) as server:
        _, result = sweep(server, images, tmp_path, *SMALL)
    assert set(runs.values()) == {2}
    assert all(row["repeated"] for row in result["cells"])
    found = {row["name"]: row["summary"]["lag"]["valid"] for row in result["cells"]}
    assert [name for name, valid in found.items() if not valid] == ["steady_threshold-0.5_60"]


def test_a_service_of_its_own_is_started_twice_and_stopped(images: Path, tmp_path: Path) -> None:
    program = tmp_path / "toy.py"
    program.write_text(
        "import os, sys, signal, threading\n"
        "from tests.loadtest.servers import *\n"
        "import tests.loadtest.servers as servers\n"
        "async def behaviour(request):\n"
        "    on = os.environ['SKIPVIT_ADAPTIVE'] == '1'\n"
        "    return answer(label_of(request.body), threshold=float(request.query.get('threshold', 0)), degraded=on)\n"
        "assert os.environ['SKIPVIT_CACHE_BYTES'] == '0'\n"
        "async def main():\n"
        "    listener = await asyncio.start_server(Server(behaviour).handle, '127.0.0.1', int(sys.argv[1]))\n"
        "    stop = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)\n"
        "    await stop.wait()\n"
        "    print('stopped', flush=True)\n"
        "asyncio.run(main())\n"
    )
    command = f"env PYTHONPATH={Path.cwd()} {sys.executable} {program} {{port}}"
    out = tmp_path / "out"
    assert main(["--port", "0", "--serve", command, "--data", str(images), "--out", str(out), *SMALL]) == 0
    result = result_of(out)
    assert result["adaptive_by"] == "setting"
    assert {row["adaptive"]: row["summary"]["degraded_ratio"] for row in result["cells"]} == {False: 0, True: 1}
    assert (out / "service.log").read_text().count("stopped") == 2


def test_a_service_that_doesnt_start_is_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{sys.executable} -c \"raise SystemExit('no such bundle')\" {{port}}"
    assert main(["--port", "0", "--serve", command, "--data", str(images), "--out", str(tmp_path), *GRID]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("loadtest.sweep: the service ended with exit code 1: no such bundle")


def test_the_gate_passes_the_same_result_and_fails_a_made_up_regression(swept: Path, tmp_path: Path) -> None:
    baseline, worse = tmp_path / "baseline.json", tmp_path / "worse.json"
    assert check.main([str(swept / "results.json"), str(baseline), "--write"]) == 0
    assert check.main([str(swept / "results.json"), str(baseline)]) == 0
    result = result_of(swept)
    for row in result["cells"]:
        if row["query"] == "threshold=0.5" and row["summary"]["top1"]:
            row["summary"]["top1"]["value"] -= 0.05
    worse.write_text(json.dumps(result))
    assert check.main([str(worse), str(baseline)]) == 1
    assert check.main([str(tmp_path / "nothing.json"), str(baseline)]) == 2


@pytest.mark.parametrize(
    ("name", "before", "now", "fails"),
    [
        ("p99_over_p50:a", 2.0, 3.1, False),
        ("p99_over_p50:a", 2.0, 3.3, True),
        ("p99_over_p50:a", 2.0, 1.0, False),
        ("capacity_ratio:a", 2.0, 1.7, False),
        ("capacity_ratio:a", 2.0, 1.5, True),
        ("capacity_ratio:a", 2.0, 9.0, False),
        ("top1_difference:a", -0.01, -0.02, False),
        ("top1_difference:a", -0.01, -0.04, True),
        ("macs_ratio:a", 0.5, 0.56, True),
        ("overhead_ratio:a", 0.1, 0.3, True),
        ("adaptive_goodput_gain:ramp", 0.4, 0.0, True),
        ("capacity_ratio:gone", 1.0, None, True),
    ],
)
def test_each_ratio_may_change_so_much(name: str, before: float, now: float | None, fails: bool) -> None:
    found = {} if now is None else {name: now}
    assert bool(regressions(found, {name: before})) == fails


def test_ratios_dont_depend_on_the_machines_speed(swept: Path) -> None:
    result = result_of(swept)
    before = ratios(result)
    for row in result["cells"]:
        summary = row["summary"]
        summary["throughput_rps"] *= 3
        summary["latency_s"] = {name: value and value / 3 for name, value in summary["latency_s"].items()}
    assert ratios(result) == pytest.approx(before, abs=1e-3)
    kinds = {name.partition(":")[0] for name in before}
    assert kinds == set(check.RULES)


def test_a_check_that_fails_is_the_sweeps_exit_code(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"ratios": {"capacity_ratio:threshold=0.5": 1000.0}}))
    with serving(Server(good)) as server:
        code, _ = sweep(server, images, tmp_path / "out", *SMALL, "--check", str(baseline))
    assert code == 1
    assert "capacity_ratio:threshold=0.5 is" in capsys.readouterr().err


def test_the_grid_is_fixed_compute_first_and_fits_the_minutes() -> None:
    spec = Spec(
        ("threshold=0", "preset=economy"), (parse_rate("0.5x"), parse_rate("20")), "preset=full", parse_rate("1x"), True
    )
    planned = cells(spec)
    assert planned[0] == Cell("capacity", "threshold=0", False)
    assert [cell.adaptive for cell in planned] == sorted(cell.adaptive for cell in planned)
    assert len({cell.name for cell in planned}) == len(planned)
    assert [rate.rps(10) for rate in spec.rates] == [5, 20]
    assert seconds_each(planned, 5, 2) > seconds_each(planned, 3, 2) > 0
    with pytest.raises(ValueError, match="don't fit"):
        seconds_each(planned, 0.5, 2)
    with pytest.raises(ValueError, match="above 0"):
        parse_rate("0x")
    assert str(Rate(0.5, True)) == "0.5x"
