"""The numbers of the figures against hand-made ones, the pictures against their sizes and pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import analyse, checkpoint, figures
from models.data import DataError, load_images
from models.labels import scaled_cosine_similarity
from models.macs import shape_of, used_macs
from models.preprocessing import normalise
from tests.conftest import SIZE_PX

ALWAYS = {"similarity.png", "layers.png", "keep.png", "adaptive.png", "depth.png"}


def write_evaluation(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"image_size_px": 64, "patches": 16, "attention": "kept_only", "rows": rows}
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder / "evaluation.json"


def row(threshold: float, top1: float, skipped: float) -> dict[str, float]:
    return {"threshold": threshold, "top1": top1, "skipped_patches": skipped}


def test_an_idle_patch_is_told_by_what_later_layers_do() -> None:
    kept = np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]], bool)  # (3 layers, 4 patches)
    kept_, again, gone = figures.KEPT, figures.AGAIN, figures.GONE
    assert analyse.patch_states(kept).tolist() == [
        [kept_, again, gone, kept_],
        [kept_, again, gone, gone],
        [gone, kept_, gone, gone],
    ]


def test_similarities_are_binned_by_layer() -> None:
    values = np.array([[[0.1, 0.3], [0.9, 1.0]], [[0.1, 0.3], [0.9, 1.0]]])  # (2 images, 2 layers, 2 patches)
    found = analyse.summarise(values, bins=5)
    assert found.share.tolist() == [[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_allclose(found.mean, [0.2, 0.95])
    np.testing.assert_allclose(found.p10, [0.1, 0.9])
    np.testing.assert_allclose(found.p90, [0.3, 1.0])


def test_rings_run_from_the_border_inwards() -> None:
    grid = np.array([[1.0, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 7, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 5]])
    assert analyse.ring_means(grid) == pytest.approx([(15 + 5) / 16, 2, 7])
    assert analyse.ring_means(grid[:2, :2]) == pytest.approx([1.25])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * sum(d^2) / (n^3 - n)
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),  # ranks 0, 1.5, 1.5, 3
        ([1, 1, 1], [1, 2, 3], math.nan),
    ],
)
def test_rank_correlation(x: list[float], y: list[float], expected: float) -> None:
    assert analyse.spearman(np.array(x), np.array(y)) == pytest.approx(expected, nan_ok=True)


def test_easy_images_are_answered_and_hard_ones_lose_most() -> None:
    loss = np.arange(20, dtype=float)[::-1]  # image 19 is the easiest, image 0 the hardest
    macs = np.linspace(1.0, 0.05, 20)  # 1 for image 0, falling by 0.05
    correct = np.arange(20) != 19  # the surest of all, but wrong
    found = analyse.adaptivity(macs, loss, correct, bins=5)
    assert found.easy_mean == pytest.approx(macs[14:19].mean())  # a third is six, less the wrong one
    assert found.hard_mean == pytest.approx(macs[:6].mean())
    assert found.easy.sum() == pytest.approx(1)
    assert found.hard.sum() == pytest.approx(1)
    assert found.easy[0] > 0 == found.hard[0]
    np.testing.assert_allclose(found.decile_loss, np.arange(10) * 2 + 0.5)
    np.testing.assert_allclose(found.decile_mean, np.linspace(0.075, 0.975, 10))
    np.testing.assert_allclose(found.decile_p90 - found.decile_p10, 0.04)
    assert found.spearman == pytest.approx(1)


def test_where_every_image_costs_the_same_nothing_divides_by_zero() -> None:
    found = analyse.adaptivity(np.ones(10), np.arange(10.0), np.zeros(10, bool))
    assert math.isnan(found.spearman)
    assert math.isnan(found.easy_mean)  # none is answered
    assert analyse.plain(found)["spearman"] is None


def test_a_snake_and_a_tree_of_middling_depth_are_chosen() -> None:
    names = ["apple", "oak_tree", "snake", "snake", "snake", "snake", "pine_tree"]
    depth = np.array([5, 5, 9, 7, 1, 2, 5])
    correct = np.array([1, 0, 1, 1, 1, 0, 1], bool)
    assert analyse.choose(names, depth, correct) == [3, 6]  # 7 is the median of 9, 7, 1; the oak is wrong
    assert analyse.choose(["red", "blue", "red"], depth[:3], correct[:3]) == [0, 1]


def test_what_is_measured_is_what_the_model_does(toy_checkpoint: Path, toy_images: Path) -> None:
    model, images = checkpoint.load(toy_checkpoint), load_images(str(toy_images), "test", SIZE_PX)
    level = 0.5
    measured, similar = analyse.measure(model, images, level, (0.25, level)), analyse.similarities(model, images)
    pixels, labels = next(iter(images.batches(12)))
    x = normalise(pixels, model.config.mean, model.config.std)
    with torch.inference_mode():
        dense, out = (model(x, torch.full((12,), value), "sparse") for value in (0.0, level))
        hidden = model.trajectory(x).hidden
    probability = dense.logits.softmax(1)[torch.arange(12), labels]
    np.testing.assert_allclose(np.exp(-measured.loss), probability, rtol=1e-4)
    assert measured.correct.tolist() == (out.logits.argmax(1) == labels).tolist()
    assert (measured.kept == out.kept.numpy()).all()
    used = used_macs(shape_of(model), out.kept, gated=True)
    np.testing.assert_allclose(measured.macs_ratio, used.numpy() / shape_of(model).dense)
    np.testing.assert_allclose(measured.keep[:, 1], out.kept.float().mean(-1))
    prefix = model.vit.num_prefix_tokens
    last = scaled_cosine_similarity(hidden[-2][:, prefix:], hidden[-1][:, prefix:])
    np.testing.assert_allclose(similar[:, -1], last, rtol=1e-4)
    assert similar.shape == (12, model.layers, model.patches)


def test_an_evaluation_becomes_a_curve_for_each_input_size(tmp_path: Path) -> None:
    rows = [row(0, 0.9, 0), row(0.5, 0.8, 4), row(0.5, 0.7, 1) | {"size_px": 32}]
    full, small = analyse.curves(write_evaluation(tmp_path / "name", rows))
    assert full.label == "name, 64 px (16 patches), kept only"
    assert small.label == "name, 32 px (4 patches), kept only"
    assert full.threshold.tolist() == [0, 0.5]
    assert full.skipped.tolist() == [0, 0.25]
    assert small.top1.tolist() == [0.7]
    assert small.skipped.tolist() == [0.25]


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"image_size_px": 1, "patches": 1, "rows": [1]}'])
def test_another_file_is_no_evaluation(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json is no evaluation"):
        analyse.curves(tmp_path / "x.json")


def test_the_title_names_the_most_that_is_skipped_for_little() -> None:
    levels, top1 = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.90, 0.89, 0.885, 0.80])
    curve = figures.Curve("toy, 64 px (16 patches), kept only", levels, top1, np.array([0, 0.1, 0.25, 0.5]))
    title = figures.threshold([curve]).get_suptitle()
    assert title == "25.0 % of patches skipped for 1.5 points of accuracy (toy, 64 px, threshold 0.2)"
    assert (
        "loses more than 2 points" in figures.threshold([curve._replace(top1=top1 - [0, 0.1, 0.1, 0])]).get_suptitle()
    )


def test_shading_tells_the_three_states_apart() -> None:
    image = np.full((8, 8, 3), 200, np.uint8)
    shaded = figures.shade(image, np.array([figures.KEPT, figures.AGAIN, figures.GONE, figures.KEPT], np.uint8))
    assert (shaded[:4, :4] == 200).all()
    assert (shaded[4:, :4] == 0).all()
    red, green, blue = shaded[0, 4]
    assert red > green < blue  # purple
    assert green < 100
    with pytest.raises(ValueError, match="no square grid"):
        figures.shade(image, np.zeros(5, np.uint8))


def test_the_command_writes_figures_and_their_numbers(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = write_evaluation(tmp_path / "name", [row(0, 0.9, 0), row(0.5, 0.8, 4)])
    out = tmp_path / "figures"
    arguments = ["--checkpoint", str(toy_checkpoint), "--data", str(toy_images), "--out", str(out), "--device", "cpu"]
    more = ["--baseline", str(toy_checkpoint), "--evaluation", str(evaluation), "--threshold", "0.75"]
    assert analyse.main([*arguments, *more, "--max-images", "11"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[:-1] == [str(out / name) for name in [*_drawn_order(), "analysis.json"]]
    for name in ALWAYS | {"threshold.png"}:
        with Image.open(out / name) as picture:
            assert picture.width == 1400
            assert picture.height > 500
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20, name  # no blank sheet
        assert (out / name).stat().st_size < 200_000
    text = (out / "analysis.json").read_text()
    written, summary = json.loads(text), json.loads(printed[-1])
    assert summary == {key: written[key] for key in summary}
    assert (summary["images"], summary["score_threshold"], summary["checkpoint"]) == (11, 0.75, toy_checkpoint.name)
    assert str(tmp_path) not in text + printed[-1]
    assert str(toy_checkpoint) not in text + printed[-1]
    assert written["similarity"]["before"] == written["similarity"]["after"]  # the same checkpoint
    gated = written["keep"]["gated_layers"]
    assert np.shape(written["depth"]["mean"]) == (4, 4)
    share = dict(zip(written["keep"]["threshold"], written["keep"]["share"], strict=True))[0.75]
    assert np.mean(written["depth"]["mean"]) == pytest.approx(sum(share), abs=1e-3)
    assert [len(example["states"]) for example in written["layers"]] == [len(gated)] * 2
    assert "image" not in written["layers"][0]


def _drawn_order() -> list[str]:
    return ["similarity.png", "layers.png", "keep.png", "adaptive.png", "depth.png", "threshold.png"]


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.save(figures.depth(np.eye(4), np.array([0.5, 0.5]), 3, "note"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "config.json is missing"),
        (["--data", "./nowhere"], "./nowhere is no folder"),
        (["--image-size", "50"], "whole number of 16-px patches"),
        (["--threshold", "2"], "--threshold in [0, 1]"),
        (["--max-images", "9"], "9 images are too few"),
        (["--evaluation", "nowhere.json"], "nowhere.json is no evaluation"),
        (["--baseline", "nowhere"], "config.json is missing"),
    ],
)
def test_unusable_input_gets_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    toy_checkpoint: Path,
    toy_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = ["--checkpoint", str(toy_checkpoint), "--data", str(toy_images), "--out", str(tmp_path), "--device", "cpu"]
    assert analyse.main([*usual, *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_checkpoint_without_gates_has_nothing_to_show(
    toy_checkpoint: Path, toy_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = toy_checkpoint.parent / "dense"
    assert analyse.main(["--checkpoint", str(dense), "--data", str(toy_images), "--out", str(tmp_path)]) == 2
    assert "needs a checkpoint with gates" in capsys.readouterr().err
