"""Thresholds decide, packing loses nothing."""

from __future__ import annotations

import torch

from models.selection import keep_patches, keep_tokens, pack


def test_each_image_has_its_own_threshold_and_equal_scores_are_skipped() -> None:
    scores = torch.tensor([[0.2, 0.5, 0.8], [0.2, 0.5, 0.8]])
    kept = keep_patches(scores, torch.tensor([0.5, 0.1]))
    assert kept.tolist() == [[False, False, True], [True, True, True]]


def test_threshold_zero_keeps_even_a_score_of_zero_and_threshold_one_keeps_nothing() -> None:
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert keep_patches(scores, torch.tensor([0.0, 1.0])).tolist() == [[True, True], [False, False]]


def test_prefix_tokens_are_always_kept() -> None:
    assert keep_tokens(torch.tensor([[False, True]]), 2).tolist() == [[True, True, False, True]]


def test_packing_finds_every_kept_token_in_both_layouts() -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(7, 11, generator=generator) > 0.6
    keep[:, 0] = True
    keep[3] = False
    keep[3, 0] = True  # an image with nothing but its CLS token
    packing = pack(keep)
    B, K = packing.source.shape
    assert keep.flatten().nonzero().flatten().equal(packing.rows)
    assert packing.counts.equal(keep.sum(1))
    assert int(packing.counts.max()) == K
    padded = packing.rows[packing.source].flatten()  # (B * K,) tokens in the padded layout
    assert padded[packing.slots].equal(packing.rows)
    assert (packing.slots // K).equal(packing.rows // keep.shape[1])
