"""PURE: from gate logits and thresholds to kept patches, and from kept tokens to the rows of the sparse path.

Kept tokens of a batch are packed without padding: (B, N) keep mask -> M flat rows, M = all kept tokens of all images.
Every token-wise operation (LayerNorm, projections, MLP) runs on those M rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def keep_patches(logits: Tensor, threshold: Tensor) -> Tensor:
    """Which patches to compute: those whose score, the sigmoid of the gate's logit, is above the image's threshold.

    Compared are logits: a sigmoid saturates, and threshold 0 must keep every patch, threshold 1 none.

    Args:
        logits: (B, P) float, finite.
        threshold: (B,) float in [0, 1].

    Returns:
        (B, P) bool.
    """
    return logits > threshold.logit()[:, None]


def straight_through(noise: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`keep_patches` for training: gate logits (B, P), thresholds (B,) -> (B, P) float of zeros and ones.

    Forward is the hard decision, backward the gradient of the score's distance from the threshold (1308.3432). `noise`
    scales logistic noise on the logits, which makes close decisions random; 0 is the rule of inference.
    """

    def decide(logits: Tensor, threshold: Tensor) -> Tensor:
        logits, limit = logits.float(), threshold.float()[:, None]
        if noise:
            logits = logits + noise * torch.rand_like(logits).logit(eps=1e-6)
        soft = (logits - limit.logit(eps=1e-6)).sigmoid()
        hard = ((soft > 0.5) | (limit <= 0)).float()
        return hard + (soft - soft.detach())  # exactly `hard`

    return decide


def keep_tokens(kept: Tensor, prefix: int) -> Tensor:
    """Prepend the `prefix` tokens, which are always kept: (B, P) -> (B, N), bool or float."""
    return F.pad(kept, (prefix, 0), value=1)


def kept_rows(keep: Tensor) -> Tensor:
    """The kept tokens' rows in the flattened tokens, ascending: keep (B, N) bool -> (M,) int64, M all kept tokens.

    No Python number is read from `keep`, so a traced M stays dynamic.
    """
    rows = keep.flatten().nonzero().squeeze(1)
    if torch.compiler.is_compiling():  # torch.export can't see that prefix tokens are always kept
        torch._check(rows.shape[0] > 0)
    return rows
