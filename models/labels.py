"""PURE: the write-up's labels. How much does a patch change from a layer's input to its output, and is that enough?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def scaled_cosine_similarity(before: Tensor, after: Tensor) -> Tensor:
    """Similarity of same-positioned patches in adjacent layers, in [0, 1]: direction and distance, half each.

    `0.5 * (cos + 1) / 2 + 0.5 / (1 + |after - before|^2 / |after|^2)`, as in the method's public implementation.

    Args:
        before, after: (..., C) float, a layer's input and output.

    Returns:
        (...) float; 1 where nothing changed.
    """
    cosine = F.cosine_similarity(before, after, dim=-1)
    change = (after - before).square().sum(-1) / after.square().sum(-1).clamp_min(1e-12)
    return 0.5 * (cosine + 1) / 2 + 0.5 / (1 + change)


def keep_labels(before: Tensor, after: Tensor, cosine_threshold: float) -> Tensor:
    """1 (keep) where the similarity is below `cosine_threshold`, else 0 (skip): (..., C) pairs -> (...) bool."""
    return scaled_cosine_similarity(before, after) < cosine_threshold
