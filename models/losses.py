"""PURE: the terms a training stage sums. They know no model and log nothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def task_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of logits (B, classes) against labels (B,) int64, with label smoothing; a scalar, nats."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def gate_loss(gate_logits: Tensor, keep: Tensor) -> Tensor:
    """Binary cross-entropy of gate logits (...) against keep labels (...) bool; a scalar, nats."""
    return F.binary_cross_entropy_with_logits(gate_logits.float(), keep.float())
