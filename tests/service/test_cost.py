from __future__ import annotations

import numpy as np
import pytest

from service.cost import CostModel
from tests.fakes import LAYERS, PATCHES, fake_manifest

SECONDS_FIXED, SECONDS_PER_MAC = 0.002, 1e-7


def kept(rows: int, size_px: int, share: float) -> np.ndarray:
    patches = PATCHES[size_px]
    mask = np.zeros((rows, LAYERS, patches), np.bool_)
    mask[:, :, : round(share * patches)] = True
    return mask


def macs(rows: int, size_px: int, share: float) -> float:
    return rows * (4000 + LAYERS * (500 + 1000 * round(share * PATCHES[size_px])))


def run(model: CostModel, rows: int, size_px: int, threshold: float, share: float) -> float | None:
    seconds = SECONDS_FIXED + SECONDS_PER_MAC * macs(rows, size_px, share)
    return model.learn(size_px, np.full(rows, threshold, np.float32), kept(rows, size_px, share), seconds)


def test_macs_come_from_the_table_before_anything_ran() -> None:
    model = CostModel(fake_manifest())
    assert model.macs(28, 0.25) == pytest.approx(0.8 * 53500)
    assert model.macs(14, 0.5) == pytest.approx(0.2 * 53500)
    assert model.seconds(1e9) == 0


def test_without_a_table_every_patch_is_counted() -> None:
    model = CostModel(fake_manifest(calibration=[]))
    assert model.macs(28, 0.9) == 53500
    assert model.macs(14, 0.0) == 17500


def test_seconds_have_a_fixed_part_and_a_part_for_each_mac() -> None:
    model = CostModel(fake_manifest())
    for rows in (1, 8, 3, 16):
        run(model, rows, 28, 0.0, 1.0)
    assert model.seconds(1e6) == pytest.approx(SECONDS_FIXED + 0.1)
    assert model.seconds(0) == pytest.approx(SECONDS_FIXED)


def test_runs_of_one_size_alone_are_taken_as_proportional() -> None:
    model = CostModel(fake_manifest())
    for _ in range(5):
        run(model, 4, 28, 0.0, 1.0)
    seen = macs(4, 28, 1.0)
    assert model.seconds(2 * seen) == pytest.approx(2 * (SECONDS_FIXED + SECONDS_PER_MAC * seen))


def test_second_looks_are_predicted_from_their_table_and_learned() -> None:
    half = {"size_px": 14, "again_px": 28, "sure": 0.9, "looked_again": 0.5, "macs_ratio": 0.7, "accuracy": 0.9}
    model = CostModel(fake_manifest(second_looks=[half]))
    assert model.later_macs(14, 0.0, 0.0) == model.later_macs(28, 0.0, 0.9) == 0
    assert model.later_macs(14, 0.0, 0.9) == pytest.approx(0.5 * 53500)
    for _ in range(200):
        model.learn_looks(14, 0.0, 0.9, images=1, again=0)
        model.learn_looks(14, 0.0, 0.0, images=1, again=0)  # one look says nothing
    assert 0 < model.later_macs(14, 0.0, 0.9) < 0.2 * 0.5 * 53500
    for _ in range(200):
        model.learn_looks(14, 0.0, 0.9, images=2, again=2)
    assert 0.9 * 53500 < model.later_macs(14, 0.0, 0.9) <= 53500
    assert model.looks_ratio > 1.8
    model.learn_looks(28, 0.0, 0.0, images=3000, again=0)  # of that, little is known later
    assert model.looks_ratio == pytest.approx(1.0, abs=0.1)


def test_what_images_really_keep_corrects_the_table() -> None:
    model = CostModel(fake_manifest())
    real = macs(1, 28, 0.25)
    assert model.macs(28, 0.5) > 1.5 * real
    for _ in range(60):
        run(model, 8, 28, 0.5, 0.25)
    assert model.macs(28, 0.5) == pytest.approx(real, rel=0.02)
    assert model.macs(14, 0.5) == pytest.approx(0.2 * 53500)  # another size has a history of its own


def test_packing_counts_as_macs_and_is_no_correction() -> None:
    points = [
        point.model_copy(update={"time_ratio": point.time_ratio + 0.1 * (point.threshold > 0)})
        for point in fake_manifest().calibration
    ]
    model = CostModel(fake_manifest().model_copy(update={"calibration": tuple(points)}))
    predicted = (0.6 + 0.1) * 53500
    assert model.macs(28, 0.5) == pytest.approx(predicted)
    assert model.macs(28, 0.0) == pytest.approx(53500)
    for _ in range(5):
        share = (0.6 * 53500 - 4000 - LAYERS * 500) / (LAYERS * 16000)
        mask = np.arange(PATCHES[28] * LAYERS).reshape(1, LAYERS, -1) < share * PATCHES[28] * LAYERS
        model.learn(28, np.full(1, 0.5, np.float32), mask, 0.7)
    assert model.macs(28, 0.5) == pytest.approx(predicted, rel=0.02)
    assert model.seconds(predicted) == pytest.approx(0.7, rel=0.02)


def test_the_error_of_a_prediction_shrinks_as_it_learns() -> None:
    model = CostModel(fake_manifest())
    assert run(model, 8, 28, 0.5, 0.25) is None
    errors = [run(model, rows, 28, 0.5, 0.25) or 0.0 for rows in (2, 8, 5, 1) * 15]
    assert abs(errors[0] - 1) > 0.2
    assert all(abs(error - 1) < 0.03 for error in errors[-4:])
