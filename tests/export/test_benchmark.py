"""The benchmark: every rival timed and compared, accuracy where it was measured, a picture of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import benchmark, rival_accuracy
from export.benchmark_plot import draw
from export.equal_accuracy import compare
from export.precision import SURE
from export.rivals import Answer, Rival, constant
from loadtest import environment
from service.artifact import load_bundle
from service.budget import Choice


def test_presets_sizes_and_thresholds_are_timed_each_once(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    points = benchmark.points_of(bundle)
    presets = {Choice(preset.size_px, preset.threshold, preset.sure) for preset in bundle.manifest.presets.values()}
    assert len(points) == len(set(points))
    sizes = {Choice(64, 0), Choice(32, 0), Choice(32, 0, SURE)}
    levels = {Choice(64, level) for level in benchmark.THRESHOLDS}  # none of PAIRS is of a size of this model
    assert set(points) == presets | sizes | levels
    assert points[0] == Choice(64, 0.0)
    assert benchmark.chosen_points(bundle, None) == {"float32": points}
    asked = (Choice(32, 0.5), Choice(32, 0.0, 0.7), Choice(32, 0.0, 0.7, 64))
    assert benchmark.chosen_points(bundle, "32:0.5,32:0:0.7,32:0:0.7:64") == {"float32": asked}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("96:0", "no input size 96 px"),
        ("32:0:0.5:96", "no input size 96 px"),
        ("64", "not enough values"),
        ("64:0:0:0:0", "too many values"),
    ],
)
def test_points_that_cant_be_timed_get_one_line_and_exit_2(
    points: str, message: str, tiny_bundle: Path, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(tiny_bundle), "--images", str(toy_images), "--points", points]
    assert benchmark.main(arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def second(first: Answer, full: np.ndarray) -> Answer:
    """Answers class 1 to images at the full size."""
    assert full.shape == (len(first.logits), 64, 64, 3)
    return Answer(np.eye(3, dtype=np.float32)[np.ones(len(full), int)])


def fake(kind: str, size_px: int, share: int, threshold: float = 0.0, sure: float = 0.0) -> Rival:
    """Answers class 0 at once; costs `share` of 100 MACs."""

    def run(images: np.ndarray) -> Answer:
        assert images.shape[1:] == (size_px, size_px, 3)
        return Answer(np.eye(3, dtype=np.float32)[np.zeros(len(images), int)])

    name = f"{kind} r={share}" if kind == "merging" else kind
    twice = (sure, 64, second) if sure else ()
    return Rival(kind, name, size_px, constant(share), run, kind == "dense", threshold, *twice)


EVERYBODY = [
    *(fake("dense", size_px, share) for size_px, share in ((64, 100), (32, 25))),
    *(fake("dense-int8", size_px, share) for size_px, share in ((64, 100), (32, 25))),
    *(fake("merging", 64, share) for share in (80, 60)),
    *(fake(kind, 64, 110) for kind in ("timm", "timm-compiled")),
    *(fake("openvino", size_px, share) for size_px, share in ((64, 100), (32, 25))),
    *(fake(kind, *point) for kind in ("float32", "int8") for point in ((64, 101, 0.0), (64, 70, 0.4), (32, 20, 0.4))),
    *(fake(kind, 32, 40, 0.0, 0.6) for kind in ("float32", "int8")),
]
NOTHING = Answer(np.zeros((0, 3), np.float32))
PRESETS = {"full": Choice(64, 0.0), "balanced": Choice(64, 0.4), "economy": Choice(32, 0.4)}


@pytest.fixture(scope="module")
def rows() -> list[benchmark.Row]:
    images = {size_px: np.zeros((5, size_px, size_px, 3), np.uint8) for size_px in (64, 32)}
    times = benchmark.measure(EVERYBODY, images, 4, 0.0)
    return benchmark.rows_of(times, 4, lambda rival: 0.845 + 0.0005 * rival.macs(NOTHING), 50.0)


def test_everybody_gets_a_row_beside_the_dense_model(rows: list[benchmark.Row]) -> None:
    assert [(row.precision, row.size_px, row.threshold, row.sure) for row in rows] == [
        (rival.kind, rival.size_px, rival.threshold, rival.sure) for rival in EVERYBODY
    ]
    assert (rows[0].speedup, rows[0].ideal, rows[0].realised, rows[0].macs_ratio) == (1, 1, 1, 1)
    assert rows[0].images_s == rows[0].dense_images_s
    for row, rival in zip(rows, EVERYBODY, strict=True):
        assert row.macs_ratio == rival.macs(NOTHING) / 100
        assert row.ideal == pytest.approx(1 / row.macs_ratio, abs=1e-3)
        assert row.realised == pytest.approx(row.speedup * row.macs_ratio, abs=1e-3)
    table = benchmark.table([asdict(row) for row in rows])
    assert len(table.splitlines()) == 1 + len(rows)
    assert "89.50%" in table.splitlines()[1]


def test_two_looks_are_compared_by_their_mean_as_most_images_are_looked_at_once() -> None:
    dense, once, twice = fake("dense", 64, 100), fake("float32", 32, 40), fake("float32", 32, 40, sure=0.6)
    times = {dense: [1.0, 1.0, 1.0], once: [0.5, 0.5, 2.0], twice: [0.5, 0.5, 2.0]}
    found = benchmark.rows_of(
        {rival: benchmark.Times(seconds, [1.0]) for rival, seconds in times.items()}, 4, lambda _: None, 50.0
    )
    assert [row.speedup for row in found] == [1, 2, 1]
    assert [row.images_s for row in found] == [4, 8, 4]


def test_what_was_written_is_printed_and_drawn_anew(
    rows: list[benchmark.Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [asdict(row) for row in rows]
    result = {"machine": benchmark.machine(), "version": "1", "rows": found, "equal_accuracy": compare(found, PRESETS)}
    file, picture = tmp_path / "benchmark.json", tmp_path / "benchmark.png"
    file.write_text(json.dumps(result))
    assert benchmark.main(["--from", str(file), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "(balanced, float32)" in printed
    assert "balanced, points of accuracy lost" in printed
    assert json.loads(printed.splitlines()[-1]) == result
    with Image.open(picture) as image:
        assert image.size == (1400, 868)
    (axis,) = draw(result).axes
    texts = {text.get_text() for text in axis.texts}
    assert {
        "timm",
        "timm-compiled",
        "dense in OpenVINO",
        "64 px",
        "32 px",
        "r=80",
        "balanced",
        "economy",
        "32→64",
    } <= texts
    for row in found:
        row["accuracy"] = None
    file.write_text(json.dumps(result))
    assert benchmark.main(["--from", str(file), "--plot", str(picture)]) == 2
    assert "nothing to plot: the dense model's accuracy isn't known" in capsys.readouterr().err
    older = result | {"rows": [{name: value for name, value in row.items() if name != "again_px"} for row in found]}
    for other in ({}, older):
        file.write_text(json.dumps(other))
        assert benchmark.main(["--from", str(file)]) == 2
        assert "isn't what --out writes" in capsys.readouterr().err


def test_accuracy_comes_from_where_it_was_measured(
    tiny_bundle: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    bundle = load_bundle(folder)
    dense, merging = fake("dense", 32, 25), fake("merging", 64, 80)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    expected = next(row["top1"] for row in evaluation["rows"] if (row["size_px"], row["threshold"]) == (32, 0))
    images = rival_accuracy.images_of(bundle, str(toy_images), 6)
    assert {size_px: len(found) for size_px, found in images.items()} == {64: 6, 32: 6}
    found = rival_accuracy.measure([dense, merging], images)
    labels = [label for _, batch in images[64].batches(3) for label in batch.tolist()]
    assert found == [{"rival": "merging r=80", "size_px": 64, "top1": round(labels.count(0) / 6, 4)}]
    file = folder / rival_accuracy.FILE
    file.write_text(json.dumps({"version": bundle.manifest.version, "rows": found}))
    accuracy = rival_accuracy.known(bundle)
    assert accuracy(dense) == expected
    assert accuracy(merging) == found[0]["top1"]
    looks = {row["sure"]: row["top1"] for row in evaluation["second_looks"] if not row["threshold"]}
    assert accuracy(fake("float32", 32, 40, sure=0.6)) == looks[0.6]
    assert accuracy(fake("float32", 32, 40, sure=0.63)) is None
    assert accuracy(fake("merging", 64, 60)) is None
    assert accuracy(fake("int8", 64, 60)) is None
    assert capsys.readouterr().err.count("python -m export.rival_accuracy") == 0
    file.write_text(json.dumps({"version": "another", "rows": found}))
    assert rival_accuracy.known(bundle)(merging) is None
    file.unlink()
    assert rival_accuracy.known(bundle)(merging) is None
    assert capsys.readouterr().err.count("python -m export.rival_accuracy") == 2


def test_images_of_other_classes_are_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "test" / name / "0.png")
    assert rival_accuracy.main(["--bundle", str(tiny_bundle), "--data", str(tmp_path)]) == 2
    assert "other classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "found"), [("fpu avx2 avx512_vnni sse", ["avx2", "avx512_vnni"]), ("fpu avx2x", []), (None, [])]
)
def test_the_machine_names_the_vector_instructions_it_has(
    flags: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(benchmark, "_CPUINFO", info)
    machine = benchmark.machine()
    assert machine["instructions"] == found
    assert machine["cpu"] if flags is None else machine["cpu"] == "Some CPU"


def test_the_bench_and_the_load_test_name_the_same_machine() -> None:
    bench, load = benchmark.machine(), environment.describe([])
    assert [bench[name] for name in ("cpu", "instructions")] == [load[name] for name in ("cpu", "instructions")]
