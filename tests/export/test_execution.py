"""Choices are compared with the served way in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export import execution


def test_every_alternative_is_compared_with_the_served_way(
    tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(tiny_bundle), "--images", str(toy_images), "--seconds", "0.01", "--batch-sizes", "1,3"]
    assert execution.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])["speed"]
    assert list(found) == ["1", "3"]
    for ratios in found.values():
        assert ratios[execution.SERVED] == 1
        assert len(ratios) >= 6
        assert all(ratio > 0 for ratio in ratios.values())
    assert sum(line.startswith("| ") for line in lines) == 1 + len(found["1"])
    assert execution.main(["--bundle", str(tiny_bundle), "--images", str(toy_images / "nowhere")]) == 2
