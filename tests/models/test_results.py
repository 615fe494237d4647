"""Two-step costs and accuracies by hand, and the whole line from runs on disk to results and figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import results
from models.results import Answers, between, chosen, dumps, load_answers, two_steps, two_steps_of_one
from models.short_runs import SHORT, short_run

ROOT = Path(__file__).parent.parent.parent
IMAGES = 8


def answers(*settings: tuple[tuple[float, float], list[int], list[float], float]) -> Answers:
    """(size, threshold), right, probability and cost of each setting."""
    points, right, probability, macs = zip(*settings, strict=True)
    costs = [[cost] * len(row) for cost, row in zip(macs, right, strict=True)]
    return Answers(np.array(points, float), np.array(right, bool), np.array(probability, np.float32), np.array(costs))


SMALL = ((56.0, 0.0), [1, 0, 0, 1], [0.9, 0.2, 0.4, 0.6], 0.25)
FULL = ((112.0, 0.0), [1, 1, 0, 0], [0.8, 0.9, 0.7, 0.3], 1.0)


def test_two_steps_run_the_unsure_again_and_pay_for_both() -> None:
    found = two_steps(answers(SMALL), 0, answers(FULL), 0, (0.0, 0.4, 0.5, 1.0))
    rows = found.rows(np.array(FULL[1], bool))
    assert [row["cut"] for row in rows] == [0, 0.4, 0.5, 1]
    assert [row["macs_ratio"] for row in rows] == [0.25, 0.5, 0.75, 1.25]  # at 0.4 one image alone is below it
    assert [row["top1"] for row in rows] == [0.5, 0.75, 0.75, 0.5]
    assert [row["lost_points"] for row in rows] == [0, -25, -25, 0]
    assert rows[1]["standard_error_points"] == pytest.approx(100 * np.std([0, 0, 0, 1]) / 2, abs=0.01)
    assert rows[3]["standard_error_points"] == 0
    assert {row["size_px"] for row in rows} == {56}


def test_one_checkpoint_takes_both_steps_at_one_threshold() -> None:
    def setting(
        size_px: int, threshold: float, right: int
    ) -> tuple[tuple[float, float], list[int], list[float], float]:
        return ((size_px, threshold), [right] * 4, [0.01] * 4, size_px / 100 - threshold)

    found = two_steps_of_one(
        answers(setting(100, 0, 0), setting(100, 0.2, 1), setting(50, 0, 1), setting(50, 0.2, 0))
    ).rows()
    assert len(found) == 2 * len(results.CUTS)
    sure = [row for row in found if row["cut"] == 0]
    assert [(row["size_px"], row["threshold"], row["top1"]) for row in sure] == [(50, 0, 1), (50, 0.2, 0)]
    unsure = [row for row in found if row["cut"] == 1]
    assert [row["top1"] for row in unsure] == [0, 1]  # the full size's, at its own threshold
    assert [row["macs_ratio"] for row in unsure] == pytest.approx([1.5, 1.1])


def test_a_setting_measured_twice_or_never_is_refused() -> None:
    with pytest.raises(ValueError, match="56 px at threshold 0 was measured 2 times"):
        answers(SMALL, SMALL).at(56)
    with pytest.raises(ValueError, match="112 px at threshold 0 was measured 0 times"):
        answers(SMALL).at(112)


def test_between_two_points_images_are_shared() -> None:
    rows = [
        {"macs_ratio": 0.2, "top1": 0.7, "lost_points": 20.0},
        {"macs_ratio": 0.3, "top1": 0.6, "lost_points": 30.0},  # beaten by the first, so no part of the line
        {"macs_ratio": 0.6, "top1": 0.9, "lost_points": 0.0},
    ]
    assert between(rows, 0.3) == {"macs_ratio": 0.3, "top1": 0.75, "lost_points": 15.0}
    assert between(rows, 0.8) == {"macs_ratio": 0.6, "top1": 0.9, "lost_points": 0.0}
    assert between(rows, 0.1) is None


def test_a_setting_chosen_on_held_out_images_shows_its_test_figures() -> None:
    held = [{"macs_ratio": 0.5, "top1": 0.9}, {"macs_ratio": 0.4, "top1": 0.8}]
    test = [{"macs_ratio": 0.55, "top1": 0.7}, {"macs_ratio": 0.4, "top1": 0.75}]
    assert chosen(held, test, 0.5) is test[0]  # best where it was chosen, neither best nor within the cost on the test
    assert chosen(held, test, 0.3) is None


def summary(*points: tuple[float, float, float]) -> dict[str, Any]:
    names = ("threshold", "macs_ratio", "top1")
    last = {"points": [{"size_px": 112} | dict(zip(names, point, strict=True)) for point in points]}
    images = {"training_images": 9, "heldout_images": IMAGES}
    shared = images | {"init": "d112", "teacher": None, "wall_s": 1.0, "device": "cpu"}
    history = [{"loss": 2.0}, last | {"loss": 1.23456}]
    return shared | {"config": {"epochs": 4, "seed": 0, "learning_rate": 1e-4}, "history": history}


def test_a_short_run_is_compared_on_its_own_lines_and_never_beyond_them() -> None:
    found = short_run(summary((0.0, 1.0, 0.9), (0.6, 0.65, 0.76)), {"name": "x"})
    assert found["top1_at_shares"] == [0.86, 0.82, 0.78, None]
    assert [point["macs_ratio"] for point in found["points"]] == [1.0, 0.65]
    assert found["history"] == [{"loss": 2.0, "points": []}, {"loss": 1.2346, "points": found["points"]}]
    assert (found["training"]["seed"], found["training"]["learning_rate"]) == (0, 1e-4)


def test_a_short_run_shows_the_model_in_full_first_though_gates_that_skip_nothing_cost_more() -> None:
    found = short_run(summary((0.0, 1.0, 0.9), (0.6, 0.5, 0.7), (0.1, 1.01, 0.8)), {"name": "x"})
    assert [point["threshold"] for point in found["points"]] == [0.0, 0.1, 0.6]
    assert found["top1_at_shares"] == [0.86, 0.82, 0.78, 0.74]


def write_runs(folder: Path) -> Path:
    """Every run that the command asks for, at one cost in MACs a pixel row and random answers."""
    rng, label = np.random.default_rng(0), np.arange(IMAGES)
    thresholds = {"joint": (0.0, 0.5)}

    def write(name: str, sizes: list[int], levels: tuple[float, ...]) -> None:
        points = np.array([(size_px, level) for size_px in sizes for level in levels])
        costs = points[:, :1] / points[:, 0].max() * (1 - points[:, 1:] / 2) * np.ones(IMAGES)
        right = rng.random((len(points), IMAGES)) < 0.7
        right[points[:, 1] == 0] |= rng.random(IMAGES) < 0.5
        arrays = {"answer": np.where(right, label, -1), "label": label, "point": points, "macs_ratio": costs}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", allow_pickle=False, probability=rng.random(right.shape), **arrays)
        rows = [{"threshold": 0.0, "macs_ratio": 1.0, "top1": 0.5}]
        about = {"data": "toys", "images": IMAGES, "image_size_px": max(sizes), "dense_macs": 1000 * max(sizes)}
        (folder / f"{name}.json").write_text(json.dumps(about | {"rows": rows}))

    for name in results.RUNS:
        sizes = {"joint": [112, 98, 84, 70, 56], "d112": [112, 84], "teacher": [168], "gates": [112]}
        write(
            f"{name}/test", sizes.get(name, [int(name[1:])] if name[1:].isdigit() else []), thresholds.get(name, (0.0,))
        )
    write("joint/heldout", [112, 98, 84, 70, 56], (0.0, 0.5))
    for name in (*results.RUNS, *(f"short/{name}" for name in SHORT)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "train.json").write_text(json.dumps(summary((0.0, 1.0, 0.9), (0.6, 0.5, 0.7))))
    return folder


def test_costs_of_other_sizes_are_against_the_full_one(tmp_path: Path) -> None:
    found = load_answers(write_runs(tmp_path) / "d56" / "test", 112_000)
    assert found.macs_ratio == pytest.approx(0.5)


def test_the_command_gathers_everything_and_draws_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert results.main(["--runs", str(write_runs(tmp_path)), "--out", str(out), "--data", "toy images"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert (found["data"], found["images"], found["dense"]["macs"]) == ("toy images", IMAGES, 112_000)
    assert [method["name"] for method in found["methods"]] == list(results.METHODS)
    for method in found["methods"]:
        for budget, row in zip(found["budgets"], method["reached"], strict=True):
            assert row is None or "chosen" in method["name"] or row["macs_ratio"] <= budget
            assert row is None or row["lost_points"] == pytest.approx(
                100 * (found["dense"]["top1"] - row["top1"]), abs=0.01
            )
    points = {run["name"]: run["points"] for run in found["runs"]}
    assert len(points["joint"]) == 10
    assert [row["macs_ratio"] for row in points["d84"]] == [0.75]
    assert [row["macs_ratio"] for row in points["teacher"]] == [1.5]
    reached = {method["name"]: method["reached"] for method in found["methods"]}
    assert all(row is None or row["size_px"] == 112 for row in reached["gates_alone"])
    assert all(row is None or row["threshold"] == 0 for row in reached["resize_alone"])
    (short,) = found["short_runs"]
    assert {run["training"]["start"] for run in short["runs"]} == {short["start"]["name"]} == {results.DENSE}
    assert short["standard_error_points"] == pytest.approx(100 * (0.9 * 0.1 / IMAGES) ** 0.5, abs=0.01)
    for name in ("frontier", "ablations"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    assert str(tmp_path) not in (out / "results.json").read_text()


def test_short_runs_of_another_start_are_added_and_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    runs, out = write_runs(tmp_path / "runs"), tmp_path / "out"
    assert results.main(["--runs", str(runs), "--out", str(out)]) == 0
    more = tmp_path / "more"
    for top1 in (0.5, 0.6):
        for name in ("dense", "bypass"):
            found = summary((0.0, 1.0, top1), (0.6, 0.5, 0.4)) | {"init": "other"}
            (more / name).mkdir(parents=True, exist_ok=True)
            (more / name / "train.json").write_text(json.dumps(found))
        assert results.main(["--short-runs", str(more), "--out", str(out)]) == 0
        groups = json.loads((out / "results.json").read_text())["short_runs"]
        assert [len(group["runs"]) for group in groups] == [len(SHORT), 2]
        assert [run["name"] for run in groups[1]["runs"]] == ["dense", "bypass"]
        assert groups[1]["runs"][0]["points"][0]["top1"] == top1
    again = json.loads((more / "dense" / "train.json").read_text())
    again["config"]["seed"] = 1
    (more / "dense" / "train.json").write_text(json.dumps(again))
    assert results.main(["--short-runs", str(more), "--out", str(out)]) == 0
    groups = json.loads((out / "results.json").read_text())["short_runs"]
    assert [group["seed"] for group in groups] == [0, 0, 1]  # another seed is another group


def test_figures_are_drawn_anew_and_the_results_stay_as_they_are(tmp_path: Path) -> None:
    assert results.main(["--runs", str(write_runs(tmp_path / "runs")), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "results.json").read_text()
    frontier, ablations = (tmp_path / "figures" / f"{name}.png" for name in ("frontier", "ablations"))
    before = frontier.read_bytes()
    frontier.unlink()
    ablations.unlink()
    assert results.main(["--redraw", "--out", str(tmp_path)]) == 0
    assert frontier.read_bytes() == before
    assert ablations.exists()
    look = {"size_px": 84, "again_px": 126, "threshold": 0.0, "sure": 0.5, "macs_ratio": 0.7, "top1": 0.9}
    (tmp_path / "evaluation.json").write_text(json.dumps({"second_looks": [look]}))
    assert results.main(["--redraw", "--out", str(tmp_path)]) == 0
    assert frontier.read_bytes() != before  # with two looks as they are served
    assert (tmp_path / "results.json").read_text() == text


def test_a_bundle_has_its_two_looks_and_what_token_merging_costs_of_it() -> None:
    zoo = ROOT / "models" / "zoo" / "cifar100-vits14"
    found = results.beside(zoo)
    assert {row["again_px"] for row in found["served_looks"]} >= {112, 126}
    costs, top1 = ([row[name] for row in found["merging"]] for name in ("macs_ratio", "top1"))
    assert costs == sorted(costs, reverse=True)
    assert top1 == sorted(top1, reverse=True)
    assert 0.4 < costs[-1] < costs[0] < 0.9


def test_committed_results_say_of_runs_and_methods_what_the_code_says() -> None:
    found = json.loads((ROOT / "models" / "zoo" / "cifar100-vits14" / "results.json").read_text())
    assert {run["name"]: run["what"] for run in found["runs"]} == results.RUNS
    assert {method["name"]: method["what"] for method in found["methods"]} == results.METHODS


def test_a_folder_without_short_runs_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"short_runs": []}')
    assert results.main(["--short-runs", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "none has no short run: dense, context" in capsys.readouterr().err


def test_the_study_makes_every_file_that_results_are_gathered_from(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "--file", "models/study.mk", f"RUNS={tmp_path}", "DATA=toys"]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in results.RUNS:
        assert f"--out {tmp_path / name} >" in made, name
        assert f"--out {tmp_path / name / 'test.json'} " in made, name
        assert f"--predictions {tmp_path / name / 'test.npz'} " in made, name
    assert f"--predictions {tmp_path / 'joint' / 'heldout.npz'} " in made
    for name in SHORT:
        assert f"--out {tmp_path / 'short' / name} >" in made, name
    published = subprocess.run([*command, "published"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert published.count(" --cosine-threshold 0.") == 2
    trained = [line for line in made.splitlines() if line.startswith("mkdir")]
    assert len(trained) == len(results.RUNS) + len(SHORT) + 2  # the gates that two of them start from
    assert len({line.partition(" --init ")[2] for line in trained}) == len(trained)  # no two are the same run


def test_a_missing_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_runs(tmp_path) / "d70" / "test.npz").unlink()
    assert results.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "d70/test.npz" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_file_has_a_line_for_each_point() -> None:
    text = dumps({"points": [{"a": 1, "b": [1, 2]}, {"a": 3, "b": []}], "c": (0.8, 0.65)})
    assert json.loads(text) == {"points": [{"a": 1, "b": [1, 2]}, {"a": 3, "b": []}], "c": [0.8, 0.65]}
    assert ' "c": [ 0.8, 0.65 ]' in text
