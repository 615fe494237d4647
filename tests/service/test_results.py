from __future__ import annotations

import numpy as np
import pytest

from service.budget import Choice
from service.planner import Plan
from service.results import make_receipt, make_result, softmax, top_predictions
from tests.fakes import LAYERS, fake_manifest

LABELS = ("ant", "bee", "cat", "dog")


def kept(skipped: tuple[int, int, int], patches: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    mask = np.ones((LAYERS, patches), np.bool_)
    for layer, count in enumerate(skipped):
        mask[layer, :count] = False
    return mask


def test_probabilities_sum_to_one_for_any_finite_logits() -> None:
    for logits in ([1e4, -1e4, 0.0], [-3e38, -3e38, -3e38], [3e38, -3e38, 0.0]):
        assert softmax(np.array(logits, np.float32)).sum() == pytest.approx(1)


def test_predictions_come_best_first_and_ties_by_index() -> None:
    predictions = top_predictions(np.array([0, 2, 2, 1], np.float32), LABELS, 3)
    assert [prediction["label"] for prediction in predictions] == ["bee", "cat", "dog"]
    assert [prediction["index"] for prediction in predictions] == [1, 2, 3]


def test_more_predictions_than_labels_are_all_labels() -> None:
    assert len(top_predictions(np.zeros(4, np.float32), LABELS, 1000)) == 4


def test_a_receipt_counts_every_layer_and_averages_gated_ones() -> None:
    receipt = make_receipt(fake_manifest(), Choice(28, 0.5), kept((0, 4, 9)))
    assert receipt.skipped_per_layer == (0, 4, 9)
    assert receipt.skipped_mean == 6.5
    assert receipt.patches == 16
    assert receipt.macs_used == 4000 + 3 * 500 + 1000 * (16 + 12 + 7)
    assert receipt.macs_ratio == receipt.macs_used / 53500


def test_at_threshold_0_no_gate_is_paid_for() -> None:
    manifest = fake_manifest()
    graph = manifest.graph(14).model_copy(update={"dense_macs": 17000})  # 500 less than with its gates
    manifest = manifest.model_copy(update={"graphs": (manifest.full, graph)})
    used = [make_receipt(manifest, Choice(14, level), kept((0, 0, 0), patches=4)).macs_used for level in (0.0, 0.1)]
    assert used == [17000, 17500]


def test_dense_macs_are_those_of_the_full_size_whatever_size_ran() -> None:
    manifest = fake_manifest()
    receipt = make_receipt(manifest, Choice(14, 0.5), kept((0, 0, 0), patches=4))
    result = make_result(manifest, Plan(Choice(14, 0.5), degraded=True), receipt, np.zeros(4, np.float32), top_k=1)
    assert result["macs"]["dense"] == 53500
    assert result["degraded"]
    assert result["macs"]["ratio"] == pytest.approx(17500 / 53500)
    assert "mask" not in result
