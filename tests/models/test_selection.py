"""Thresholds decide, packing loses nothing."""

from __future__ import annotations

import pytest
import torch

from models.selection import keep_patches, keep_tokens, kept_rows, straight_through


def test_each_image_has_its_own_threshold_and_equal_scores_are_skipped() -> None:
    scores = torch.tensor([[0.2, 0.5, 0.8], [0.2, 0.5, 0.8]])
    kept = keep_patches(scores.logit(), torch.tensor([0.5, 0.1]))
    assert kept.tolist() == [[False, False, True], [True, True, True]]


def test_threshold_zero_keeps_even_a_score_of_zero_and_threshold_one_keeps_nothing() -> None:
    logits = torch.tensor([[-1e4, 1e4], [-1e4, 1e4]])  # whose sigmoids are 0 and 1
    assert keep_patches(logits, torch.tensor([0.0, 1.0])).tolist() == [[True, True], [False, False]]


def test_without_noise_training_decides_as_inference_does() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    threshold = torch.tensor([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])
    decided = straight_through(0.0)(logits, threshold)
    assert decided.tolist() == keep_patches(logits, threshold).float().tolist()
    assert 0.1 < decided.mean() < 0.9


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_hard_decision_has_the_gradient_of_the_scores_distance_from_the_threshold(noise: float) -> None:
    torch.manual_seed(0)
    logits, threshold = torch.tensor([[-2.0, 0.1, 2.0]] * 3, requires_grad=True), torch.tensor([0.0, 0.5, 0.9])
    decided = straight_through(noise)(logits, threshold)
    assert set(decided.flatten().tolist()) <= {0.0, 1.0}
    (gradient,) = torch.autograd.grad(decided.sum(), logits)
    assert (gradient[1:] > 0).all()
    if not noise:
        soft = (logits[1] - 0).sigmoid()  # the logit of 0.5
        torch.testing.assert_close(gradient[1], (soft * (1 - soft)).detach())
        assert gradient[1].argmax() == 1  # the closest decision
        assert gradient[2].argmax() == 2


def test_threshold_zero_keeps_all_whatever_the_noise() -> None:
    torch.manual_seed(0)
    logits = torch.full((2, 1000), -30.0)
    assert (straight_through(5.0)(logits, torch.zeros(2)) == 1).all()


def test_noise_makes_close_decisions_random_and_leaves_clear_ones() -> None:
    torch.manual_seed(0)
    logits, threshold = torch.tensor([[0.0] * 1000 + [12.0] * 1000]), torch.tensor([0.5])
    decided = straight_through(1.0)(logits, threshold)[0]
    assert 0.4 < decided[:1000].mean() < 0.6
    assert decided[1000:].mean() > 0.99


def test_prefix_tokens_are_always_kept() -> None:
    assert keep_tokens(torch.tensor([[False, True]]), 2).tolist() == [[True, True, False, True]]


def test_kept_rows_are_those_of_the_flattened_tokens_in_order() -> None:
    keep = torch.tensor([[True, False, True], [True, False, False], [True, True, True]])
    assert kept_rows(keep).tolist() == [0, 2, 3, 6, 7, 8]
