"""The published method's table: both attention modes from one training, and an oracle that is never wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import published

COSINE = 0.997  # of the toy's gates


def test_gates_are_judged_in_both_attention_modes_beside_an_oracle(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(toy_checkpoint.parent / "gates")
    (tmp_path / "results.json").write_text('{"data": "toys"}')
    options = ["--runs", str(tmp_path / "runs"), "--data", str(toy_images), "--out", str(tmp_path)]
    assert published.main([*options, "--max-images", "10", "--batch-size", "4", "--oracle", "0.99"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["data"] == "toys"
    table = results["published"]
    assert (table["images"], table["patches"]) == (10, 16)
    rows = {(row["gate"], row["cosine_threshold"], row["attention"]): row for row in table["rows"]}
    modes = ("full_context", "kept_only")
    asked = [("learned", COSINE), ("oracle", COSINE), ("oracle", 0.99)]
    assert list(rows) == [(*each, mode) for each in asked for mode in modes]
    for mode in modes:
        learned, oracle = (rows[gate, COSINE, mode] for gate in ("learned", "oracle"))
        assert 0.5 < learned["gate_accuracy"] < oracle["gate_accuracy"]
        assert oracle["skipped_patches"] < rows["oracle", 0.99, mode]["skipped_patches"]
    for row in table["rows"]:
        assert row["lost_points"] == pytest.approx(100 * (table["dense_top1"] - row["top1"]), abs=0.02)
    shares = [row["share"] for row in table["labelled_skip"]]
    assert shares == sorted(shares)
    assert table["training"]["start"] == "dense"
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()


def test_a_folder_without_checkpoints_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert published.main(["--runs", str(tmp_path), "--data", "toys", "--out", str(tmp_path)]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
