"""Several workers of one plan give the result that one would have given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest import merge
from loadtest.__main__ import main
from tests.loadtest.servers import Request, Server, answer, label_of, serving

PLAN = ["--rate", "60", "--seconds", "0.8", "--mix", "threshold=0:1,threshold=0.5:1", "--formats", "png:1,webp:1"]


async def by_image(request: Request) -> bytes:
    """Right about all but dogs."""
    label = label_of(request.body)
    return answer("ant" if label == "dog" else label, threshold=float(request.query["threshold"]))


def measured(images: Path, out: Path, *options: str) -> dict[str, Any]:
    with serving(Server(by_image)) as server:
        assert main(["--url", server.url, "--data", str(images), *PLAN, "--out", str(out), *options]) == 0
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def test_merged_shards_equal_the_unsharded_run(images: Path, tmp_path: Path) -> None:
    whole = measured(images, tmp_path / "whole.json")
    files = [tmp_path / f"{index}.json" for index in range(3)]
    for index, file in enumerate(files):
        measured(images, file, "--shard", f"{index}/3")
    assert merge.main([*map(str, files), "--out", str(tmp_path / "merged.json")]) == 0
    merged = json.loads((tmp_path / "merged.json").read_text())
    for name in ("due_s", "image", "point", "outcome", "top1", "top5", "threshold", "skipped_ratio"):
        assert merged["records"]["columns"][name] == whole["records"]["columns"][name], name
    assert merged["records"]["layers"] == whole["records"]["layers"]
    for name in ("requests", "outcomes", "top1", "top5", "offered_rps", "macs_ratio", "skipped_ratio"):
        assert merged["summary"][name] == whole["summary"][name], name
    latencies = sorted(
        latency for file in files for latency in json.loads(file.read_text())["records"]["columns"]["latency_s"]
    )
    assert merged["summary"]["latency_s"]["max"] == pytest.approx(latencies[-1], rel=1e-4)


def test_what_is_no_whole_plan_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "0.json", tmp_path / "1.json"
    measured(images, one, "--shard", "0/2")
    measured(images, other, "--shard", "1/2", "--seed", "9")
    assert merge.main([str(one)]) == 2
    assert "aren't all the workers of one plan" in capsys.readouterr().err
    assert merge.main([str(one), str(one)]) == 2
    assert merge.main([str(one), str(other)]) == 2
    assert "different plans" in capsys.readouterr().err
    other.write_text("{}")
    assert merge.main([str(one), str(other)]) == 2
    other.write_text("garbage")
    assert merge.main([str(one), str(other)]) == 2
