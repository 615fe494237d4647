"""Every command of the README works: it is run here, on toy data where it trains, or dry where it would recurse."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.equal_accuracy import images_s_at, speeds
from service.artifact import load_bundle
from service.budget import solve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SERVING = (ROOT / "docs" / "serving.md").read_text()
BENCHMARK = (ROOT / "docs" / "benchmark.md").read_text()
README_LINE, SERVING_LINE, BENCHMARK_LINE = (  # prose, however it is wrapped
    " ".join(text.split()) for text in (README, SERVING, BENCHMARK)
)
ZOO = ROOT / "models" / "zoo" / "cifar100-vits14"
OTHER_CPUS: dict[str, tuple[str, set[str]]] = {  # of the benchmark page's table: its file, what it has of VNNI and AMX
    "Xeon with VNNI": ("benchmark-xeon.json", {"avx512_vnni"}),
    "EPYC without VNNI": ("benchmark-avx2.json", set()),
    "Xeon with AMX": ("benchmark-amx.json", {"avx512_vnni", "amx_int8"}),
}


def commands() -> list[str]:
    """The commands of every `sh` block, continuation lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = commands()
MAKE = [line for line in COMMANDS if line.startswith("make ")]
CURL = [line for line in COMMANDS if line.startswith("curl ")]
PYTHON = [line for line in COMMANDS if line.startswith("python -m ")]


def test_there_is_no_command_that_nobody_runs() -> None:
    assert set(COMMANDS) == {*MAKE, *CURL, *PYTHON}
    assert "make serve" in MAKE
    assert "make test" in MAKE
    assert CURL
    assert PYTHON


@pytest.mark.parametrize("command", MAKE)
def test_make_targets_exist_and_their_recipes_parse(command: str) -> None:
    done = subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert targets
    for target in targets[1].split():
        assert re.search(rf"^{target}\s+\S", listed, re.M), target


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """`make serve` itself, on a free port; ended by SIGTERM, after which it must have exited 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        chosen = int(probe.getsockname()[1])
    server = subprocess.Popen(["make", "serve", f"PORT={chosen}"], cwd=ROOT, start_new_session=True)
    try:
        patient = [
            "curl",
            "-sf",
            "--retry",
            "240",
            "--retry-delay",
            "1",
            "--retry-all-errors",
        ]  # an install may come first
        subprocess.run([*patient, f"http://127.0.0.1:{chosen}/readyz"], check=True, capture_output=True)
        yield chosen
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def run_curl(command: str, port: int) -> str:
    """Run a README command against the running server; it must succeed."""
    script = command.replace("localhost:8000", f"127.0.0.1:{port}").replace("curl ", "curl --fail-with-body ", 1)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize("command", CURL)
def test_curl_commands_are_answered(command: str, port: int) -> None:
    assert run_curl(command, port).strip()


def test_the_first_answers_have_the_label_what_was_looked_at_what_was_skipped_and_what_it_cost(port: int) -> None:
    twice, skipping = CURL[:2]
    answer = json.loads(run_curl(twice, port))
    (result,) = answer["results"]
    shown = json.loads(re.search(r"```json\n(.*?)```", README, re.S)[1])  # type: ignore[index]
    assert set(answer["timing_ms"]) == set(shown["timing_ms"])
    (expected,) = shown["results"]
    assert result.keys() == expected.keys()
    for found, said in ((result["predictions"][0], expected["predictions"][0]), *looks(result, expected)):
        assert found["label"] == said["label"] == "fox"
        assert found["probability"] == pytest.approx(said["probability"], abs=0.05)
    assert result["macs"] == expected["macs"] | {"ratio": pytest.approx(expected["macs"]["ratio"], abs=0.001)}
    before = run_curl("curl -s localhost:8000/metrics", port)
    (result,) = json.loads(run_curl(skipping, port))["results"]
    after = run_curl("curl -s localhost:8000/metrics", port)
    assert result["predictions"][0]["label"] == "snake"
    assert result["threshold"] == 0.5
    said = re.search(r'`"per_layer": (\[.*?\])` of (\d+), for ([\d.]+) of the MACs', README_LINE)
    assert said
    per_layer = json.loads(said[1])
    assert np.abs(np.subtract(result["skipped_patches"]["per_layer"], per_layer)).max() <= 3
    assert result["skipped_patches"]["patches"] == int(said[2])
    assert result["macs"]["ratio"] == pytest.approx(float(said[3]), abs=0.01)
    counted = [
        float(match[1])
        for text in (before, after)
        if (match := re.search(r'^skipvit_requests_total\{model="cifar100-vits14",outcome="ok"\} (\S+)', text, re.M))
    ]
    assert counted[1] == counted[0] + 1


def looks(result: dict[str, Any], expected: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The first look's predictions, found and shown; both must be of one size."""
    found, shown = result["first_look"], expected["first_look"]
    assert found["size_px"] == shown["size_px"]
    return [(found["prediction"], shown["prediction"])]


@pytest.mark.parametrize("command", [command for command in PYTHON if "$DATA" not in command])
def test_other_python_commands_have_options_that_exist(command: str) -> None:
    """Long ones on the real bundle: their module must at least know every option that the README names."""
    module = command.split()[2]
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in re.findall(r"(--[a-z-]+)", command):
        assert option in done.stdout, option


def test_the_table_is_what_was_measured() -> None:
    evaluation, bench, manifest = (
        json.loads((ZOO / f"{name}.json").read_text()) for name in ("evaluation", "benchmark", "manifest")
    )
    assert bench["version"] == manifest["version"]
    rows = {(row["size_px"], row["threshold"]): row for row in evaluation["rows"]}
    speed = {
        (row["size_px"], row["threshold"], row["batch_size"]): row
        for row in bench["rows"]
        if row["precision"] == "float32" and not row["sure"]
    }
    patches = {graph["size_px"]: graph["patches"] for graph in manifest["graphs"]}
    shown = re.findall(
        r"^\| (\d+) px \| ([\d.]+) \| ([\d.]+) of (\d+) \| (-?[\d.]+) % \| ([\d.]+) % "
        r"\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        BENCHMARK,
        re.M,
    )
    assert len(shown) >= 4
    for size, threshold, skipped, of, saved, top1, *speedups in shown:
        point = int(size), float(threshold)
        row = rows[point]
        assert int(of) == patches[point[0]]
        assert float(skipped) == pytest.approx(row["skipped_patches"], abs=0.051)
        assert float(saved) == pytest.approx(100 * (1 - row["macs_ratio"]), abs=0.051)
        assert float(top1) == pytest.approx(100 * row["top1"], abs=0.0051)
        for batch_size, speedup in zip((1, 8, 32), speedups, strict=True):
            assert float(speedup) == pytest.approx(speed[*point, batch_size]["speedup"], abs=0.0051)


def look(row: dict[str, Any]) -> tuple[int, float, int]:
    """The looks of a measured row, or of a preset: the first one's size, when there is a second, and its size."""
    return row["size_px"], row.get("sure", 0.0), (row.get("again_px") or 112) if row.get("sure") else 0


def test_the_table_of_presets_and_two_looks_is_what_was_measured() -> None:
    bench, manifest, evaluation = (
        json.loads((ZOO / f"{name}.json").read_text()) for name in ("benchmark", "manifest", "evaluation")
    )
    plain, own = ([row for row in rows if row["threshold"] == 0] for rows in (bench["rows"], manifest["int8"]))
    ways = [*evaluation["rows"], *evaluation["second_looks"]]
    timed = {(row["precision"], *look(row), row["batch_size"]): row for row in plain}
    top1 = {("int8", *look(row)): row["top1"] for row in own}
    top1 |= {("float32", *look(row)): row["top1"] for row in ways if row["threshold"] == 0}
    macs = {look(row): row["macs_ratio"] for row in ways if row["threshold"] == 0}
    speedups = 3 * r" ([\d.]+) \|"
    shown = re.findall(
        r"^\| (?:`(\w+)`: )?(\d+) px(?:, sure ([\d.]+)(?:, then (\d+) px)?)? \| (\d+) % \| ([\d.]+) % \|"
        + speedups
        + r" ([\d.]+) % \|"
        + speedups
        + "$",
        BENCHMARK,
        re.M,
    )
    assert len(shown) == 8
    presets = {name: (preset["size_px"], preset["sure"]) for name, preset in manifest["presets"].items()}
    assert {name: (int(size), float(sure or 0)) for name, size, sure, *_ in shown if name} == presets
    for _, size, sure, again, saved, *rest in shown:
        point = int(size), float(sure or 0), int(again or 112) if sure else 0
        assert float(saved) == pytest.approx(100 * (1 - macs[point]), abs=0.51)
        for precision, (accuracy, *ratios) in (("float32", rest[:4]), ("int8", rest[4:])):
            assert float(accuracy) == pytest.approx(100 * top1[precision, *point], abs=0.0051)
            for batch_size, ratio in zip((1, 8, 32), ratios, strict=True):
                assert float(ratio) == pytest.approx(timed[precision, *point, batch_size]["speedup"], abs=0.0051)


def test_the_readme_says_in_brief_what_the_benchmark_page_says() -> None:
    section = README.partition("## What it gains\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert set(rows) <= set(BENCHMARK.splitlines())
    for words in (
        "3.6, 4.4 and 5.5 times",
        "5.4, 5.2 and 6.0 times timm in torch",
        "5.2, 3.6 and 3.9",
        "two looks answer 108 images a second, the same checkpoint at a smaller input 96, token merging 82",
        "`balanced` in int8, at 89.1 %, 342 against 318",
        "82 images a second",
        "where a smaller input as accurate answers 98",
        "trained for 84 px alone (89.28 %) answers 125 a second in float32, and `balanced` 121",
    ):
        assert words in README_LINE
        assert words in BENCHMARK_LINE


def test_what_is_said_of_balanced_beside_others_is_what_was_measured() -> None:
    bench, manifest = (json.loads((ZOO / f"{name}.json").read_text()) for name in ("benchmark", "manifest"))
    plain = [row for row in bench["rows"] if row["threshold"] == 0]
    timed = {(row["precision"], *look(row), row["batch_size"]): row for row in plain}
    timms = {
        kind: np.array([row["speedup"] for row in bench["rows"] if row["precision"] == kind])
        for kind in ("timm-onnx", "timm")
    }
    three = r"([\d.]+), ([\d.]+) and ([\d.]+)"
    said = re.search(rf"exported it runs at {three} of its speed, in torch at {three}\.", BENCHMARK_LINE)
    assert said
    assert [float(each) for each in said.groups()] == pytest.approx([*timms["timm-onnx"], *timms["timm"]], abs=0.0051)
    point = look(manifest["presets"]["balanced"])
    ours, *theirs = (
        np.array([row["images_s"] for row in rows])
        for rows in (
            [timed["int8", *point, batch_size] for batch_size in (1, 8, 32)],
            *([row for row in bench["rows"] if row["precision"] == kind] for kind in timms),
        )
    )
    said = re.search(rf"that is {three} times what .*?, and {three} times timm in torch", BENCHMARK_LINE)
    assert said
    expected = np.concatenate([ours / each for each in theirs])
    assert [float(each) for each in said.groups()] == pytest.approx(expected, abs=0.051)
    said = re.search(r"(\d+) against (\d+), and OpenVINO's dense models in bf16 (\d+)\.", BENCHMARK_LINE)
    assert said
    assert {"avx512_vnni", "avx512_bf16"} <= set(bench["machine"]["instructions"])
    equal = next(row for row in bench["equal_accuracy"] if (row["setting"], row["precision"]) == ("balanced", "int8"))
    assert all("bf16" in row["rival"] for row in bench["rows"] if row["precision"] == "openvino")
    found = equal["images_s"], equal["rivals"]["dense-int8"], equal["rivals"]["openvino"]
    assert [int(each) for each in said.groups()] == [round(each) for each in found]


def test_what_is_said_at_equal_accuracy_is_what_was_measured() -> None:
    bench = json.loads((ZOO / "benchmark.json").read_text())
    rows = {
        row["setting"]: row
        for row in bench["equal_accuracy"]
        if (row["precision"], row["batch_size"]) == ("float32", 32)
    }
    twice, larger, gated = (
        rows[name] for name in ("two looks from 70 px", "two looks from 84 px to 126 px", "112 px at threshold 0.25")
    )
    for words, found in (
        (
            r"At ([\d.]+) % top-1 two looks answer (\d+) images a second, the same checkpoint at a smaller input "
            r"(\d+), token merging (\d+); at ([\d.]+) % (\d+) against (\d+);",
            (
                *(100 * twice["accuracy"], twice["images_s"], twice["rivals"]["dense"], twice["rivals"]["merging"]),
                *(100 * larger["accuracy"], larger["images_s"], larger["rivals"]["dense"]),
            ),
        ),
        (
            r"answers (\d+) images a second, where a smaller input as accurate answers (\d+)",
            (gated["images_s"], gated["rivals"]["dense"]),
        ),
    ):
        said = re.search(words, BENCHMARK_LINE)
        assert said
        for text, value in zip(said.groups(), found, strict=True):
            assert float(text) == pytest.approx(value, abs=0.051 if "." in text else 0.51)


def test_what_is_said_of_a_dense_model_for_one_size_and_of_the_images_timed_is_what_was_measured() -> None:
    bench, results, evaluation = (
        json.loads((ZOO / f"{name}.json").read_text()) for name in ("benchmark", "results", "evaluation")
    )
    said = re.search(
        r"trained for (\d+) px alone \(([\d.]+) %\) answers (\d+) a second in float32, and `balanced` (\d+)",
        BENCHMARK_LINE,
    )
    assert said
    dense = next(run for run in results["runs"] if run["name"] == f"d{said[1]}")
    (top1,) = (row["top1"] for row in dense["points"] if row["size_px"] == int(said[1]))
    assert float(said[2]) == pytest.approx(100 * top1, abs=0.0051)
    full = [row for row in bench["rows"] if row["batch_size"] == 32 and not row["threshold"]]
    timed = {(row["precision"], row["size_px"], row["sure"], row["again_px"]): row for row in full}
    balanced = {kind: timed[kind, 56, 0.65, 112] for kind in ("float32", "int8")}
    assert int(said[3]) == round(timed["dense", int(said[1]), 0.0, 0]["images_s"])
    assert int(said[4]) == round(balanced["float32"]["images_s"])
    said = re.search(r"\((\d+) and (\d+) % of the MACs instead of (\d+)\)", BENCHMARK_LINE)
    assert said
    (on_test,) = (
        row["macs_ratio"]
        for row in evaluation["second_looks"]
        if (row["size_px"], row["again_px"], row["sure"], row["threshold"]) == (56, 112, 0.65, 0)
    )
    found = [row["macs_ratio"] for row in balanced.values()] + [on_test]
    assert [int(each) for each in said.groups()] == [round(100 * each) for each in found]


def test_what_an_unsure_image_costs_and_what_compute_buys_is_what_was_measured() -> None:
    said = re.search(
        r"take ([\d.]+) times the MACs of `full`, and alone, in int8, ([\d.]+) to ([\d.]+) times", README_LINE
    )
    assert said
    manifest = load_bundle(ZOO).manifest
    assert float(said[1]) == pytest.approx(1 + manifest.graph(56).dense_macs / manifest.full.dense_macs, abs=0.0051)
    ratios = []
    for file in ("benchmark.json", *(file for file, _ in OTHER_CPUS.values())):
        rows = json.loads((ZOO / file).read_text())["rows"]
        alone = {
            row["size_px"]: row["images_s"]
            for row in rows
            if (row["precision"], row["batch_size"], row["threshold"], row["sure"]) == ("int8", 1, 0, 0)
        }
        ratios.append(1 + alone[112] / alone[56])
    assert [float(said[2]), float(said[3])] == pytest.approx([min(ratios), max(ratios)], abs=0.051)
    evaluation = json.loads((ZOO / "evaluation.json").read_text())
    assert "`balanced`, at 55 % of the MACs, is as accurate as `compute=0.7`" in README_LINE
    bought = solve(manifest, 0.7)
    (once,) = (row for row in evaluation["rows"] if (row["size_px"], row["threshold"]) == (bought.size_px, 0.1))
    assert bought.threshold == pytest.approx(0.1, abs=0.01)
    (twice,) = (row for row in evaluation["second_looks"] if (*look(row), row["threshold"]) == (56, 0.65, 112, 0))
    assert abs(once["top1"] - twice["top1"]) < 0.001


@pytest.mark.parametrize(("result", "after"), [("peers", "## Beside other servers"), ("peers-avx2", "`peers-avx2`")])
def test_the_tables_of_peers_are_what_was_measured(result: str, after: str) -> None:
    peers = json.loads((ROOT / "loadtest" / "results" / result / "peers.json").read_text())
    cells = {(row["server"], row["rate"]): row["summary"] for row in peers["rows"]}
    names = {"skipvit, threshold 0": "ours"} | {
        f"skipvit, {name}": f"ours, {name}" for name in ("balanced", "balanced, int8", "adaptive")
    }
    shown = re.findall(
        r"^\| ([a-z0-9, ]+) \| ([\d.]+) \|" + r" (\d+) ms \|" * 4 + "$", SERVING.partition(after)[2], re.M
    )
    assert len(shown) >= len(names) + 3
    for server, capacity, *p99_ms in shown[: len(names) + 3]:
        name = names.get(server, server)
        assert float(capacity) == pytest.approx(cells[name, "capacity"]["throughput_rps"], abs=0.051)
        for rate, shown_ms in zip(("0.5x", "0.8x", "1.1x", "1.5x"), p99_ms, strict=True):
            assert float(shown_ms) == pytest.approx(1e3 * cells[name, rate]["latency_s"]["p99"], abs=0.51)


def test_the_tables_of_what_the_server_adds_are_what_was_measured() -> None:
    results = [
        json.loads((ROOT / "loadtest" / "results" / name / "overhead.json").read_text())
        for name in ("overhead", "overhead-amx", "overhead-avx2")
    ]
    features = [{"avx512_vnni", "amx_int8"} & set(result["environment"]["instructions"]) for result in results]
    assert features == [{"avx512_vnni"}, {"avx512_vnni", "amx_int8"}, set()]
    version = json.loads((ZOO / "manifest.json").read_text())["version"]
    for measured in (result["model"]["version"] for result in results):
        assert measured == version or f"graphs of version `{measured}`" in SERVING_LINE
    section = SERVING.partition("## What the server adds\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| [^|]+ \|" + r" ([\d.]+)(?: s| ms| MB)? \|" * 4 + "$", section, re.M)
    assert len(shown) == len(results[0]["targets"])
    for row, *measured in zip(shown, *(result["targets"] for result in results), strict=True):
        for text, held in zip(row, measured, strict=False):
            assert float(text) == pytest.approx(held["value"], abs=0.51 * 10 ** -len(text.partition(".")[2]))
        assert {float(row[-1])} == {held["target"] for held in measured}


def test_the_load_table_is_what_was_measured() -> None:
    sweep = json.loads((ROOT / "loadtest" / "results" / "sweep" / "results.json").read_text())
    cells = {(cell["rate_rps"], cell["adaptive"]): cell["summary"] for cell in sweep["cells"] if is_balanced(cell)}
    shown = re.findall(r"^\| ([\d.]+) \| (fixed|adaptive) \| ([\d.]+) % \| ([\d.]+) s \| ([\d.]+) % \|$", README, re.M)
    assert len(shown) >= 4
    for rate, compute, answered, p99_s, top1 in shown:
        (found,) = (
            summary
            for (rate_rps, adaptive), summary in cells.items()
            if abs(rate_rps - float(rate)) < 0.051 and adaptive == (compute == "adaptive")
        )
        assert float(answered) == pytest.approx(100 * (1 - found["refused_ratio"]), abs=0.051)
        assert float(p99_s) == pytest.approx(found["latency_s"]["p99"], abs=0.0051)
        assert float(top1) == pytest.approx(100 * found["top1"]["value"], abs=0.051)


def is_balanced(cell: dict[str, Any]) -> bool:
    return bool(cell["query"] == "preset=balanced" and cell["kind"] == "steady")


def test_the_table_of_other_cpus_is_what_was_measured() -> None:
    manifest = json.loads((ZOO / "manifest.json").read_text())
    section = BENCHMARK.partition("## Other CPUs")[2].partition("With AMX, which")[0]
    shown = re.findall(r"^\| ([\w ]+), `(\w+)` \|" + 6 * r" ([\d.]+) \|" + "$", section, re.M)
    said = re.findall(r"(\d\.\d), (\d\.\d) and (\d\.\d)", " ".join(section.split()))
    assert [(cpu, name) for cpu, name, *_ in shown] == [
        (cpu, name) for cpu in OTHER_CPUS for name in ("full", "balanced", "economy")
    ]
    assert len(said) == len(OTHER_CPUS)
    columns = [(precision, batch_size) for precision in ("float32", "int8") for batch_size in (1, 8, 32)]
    for (cpu, (file, features)), ratios_to_timm in zip(OTHER_CPUS.items(), said, strict=True):
        bench = json.loads((ZOO / file).read_text())
        assert f"`{file}`" in " ".join(section.split())
        assert bench["version"] == manifest["version"]
        assert {"avx512_vnni", "amx_int8"} & set(bench["machine"]["instructions"]) == features
        timed = {
            (row["precision"], row["size_px"], row["sure"], row["batch_size"]): row
            for row in bench["rows"]
            if row["threshold"] == 0 and row["again_px"] in (0, 112)  # where presets look again
        }
        for name, *ratios in (row[1:] for row in shown if row[0] == cpu):
            preset = manifest["presets"][name]
            for (precision, batch_size), ratio in zip(columns, ratios, strict=True):
                row = timed[precision, preset["size_px"], preset["sure"], batch_size]
                assert float(ratio) == pytest.approx(row["speedup"], abs=0.0051)
        eager = {row["batch_size"]: row["images_s"] for row in bench["rows"] if row["precision"] == "timm"}
        balanced = manifest["presets"]["balanced"]
        for batch_size, ratio in zip((1, 8, 32), ratios_to_timm, strict=True):
            ours = timed["int8", balanced["size_px"], balanced["sure"], batch_size]["images_s"]
            assert float(ratio) == pytest.approx(ours / eager[batch_size], abs=0.051)


def test_what_smaller_inputs_answer_with_amx_is_what_was_measured() -> None:
    rows = json.loads((ZOO / "benchmark-amx.json").read_text())["rows"]
    three = r"(\d+), (\d+) and (\d+)"
    said = re.search(
        rf"as accurate as `balanced` they answer {three} images a second, and {three}; `balanced` {three}\. "
        rf"As accurate as two looks from 84 px they answer {three}, and {three}; two looks {three}\.",
        BENCHMARK_LINE,
    )
    assert said
    found = list[float]()
    for size_px, sure in ((56, 0.65), (84, 0.5)):
        ours = list[float]()
        theirs: dict[str, list[float]] = {"openvino": [], "dense-int8": []}
        for batch_size in (1, 8, 32):
            same = [row for row in rows if row["batch_size"] == batch_size]
            own = next(
                row
                for row in same
                if (row["precision"], row["size_px"], row["sure"], row["again_px"]) == ("int8", size_px, sure, 112)
            )
            ours.append(own["images_s"])
            for kind, images_s in theirs.items():
                rival = images_s_at(speeds(same, kind), own["accuracy"])
                assert rival is not None
                images_s.append(rival)
        found += [*theirs["openvino"], *theirs["dense-int8"], *ours]
    assert [int(each) for each in said.groups()] == [round(each) for each in found]
