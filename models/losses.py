"""PURE: the terms a training stage sums. They know no model and log nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def task_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (B, classes) against target shares (B, classes); a scalar, nats."""
    return F.cross_entropy(logits.float(), targets)


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of logits against a teacher's answers (B, classes) logits: 1503.02531 at temperature 1; nats."""
    return F.cross_entropy(logits.float(), teacher.float().softmax(1))


def gate_loss(gate_logits: Tensor, keep: Tensor) -> Tensor:
    """Binary cross-entropy of gate logits (...) against keep labels (...) bool; a scalar, nats."""
    return F.binary_cross_entropy_with_logits(gate_logits.float(), keep.float())


def budget_loss(kept: Tensor, threshold: Tensor, groups: int) -> Tensor:
    """How far the share of patches skipped is from the threshold, squared: what makes a threshold mean that share.

    The share is that of a whole group of images and all gated layers, never of one image or one layer: easy images may
    spend less than hard ones, and layers find their own shares.

    Args:
        kept: (B, gated, P) float in [0, 1], differentiable.
        threshold: (B,) float, one for each group.
        groups: at most B; which images are a group's says `group_of`.
    """
    group = group_of(len(threshold), groups).to(threshold.device)
    missed = kept.float().mean((1, 2)) - (1 - threshold)
    images = missed.new_zeros(groups).index_add(0, group, torch.ones_like(missed))
    return (missed.new_zeros(groups).index_add(0, group, missed) / images).square().mean()


def group_of(images: int, groups: int) -> Tensor:
    """(images,) int64: neighbours into groups 0, 1, ... of the same size, or of one image more or less."""
    return torch.arange(images) * groups // images
