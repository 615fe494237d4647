"""PURE: from gate scores and thresholds to kept patches, and from kept tokens to the packed layout of the sparse path.

Kept tokens of a batch are packed without padding: (B, N) keep mask -> M flat rows, M = all kept tokens of all images.
Every token-wise operation (LayerNorm, projections, MLP) runs on those M rows. Attention alone needs the images apart:
its queries are padded to the batch's largest count K, and the padding is dropped right after. Nothing here depends on
an image's neighbours except that K, so an image's result doesn't either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def keep_patches(scores: Tensor, threshold: Tensor) -> Tensor:
    """Which patches to compute: score above the image's threshold; all of them at threshold 0.

    Args:
        scores: (B, P) float in [0, 1].
        threshold: (B,) float in [0, 1].

    Returns:
        (B, P) bool. At threshold 1 nothing is kept, since no score is above 1.
    """
    limit = threshold[:, None]
    # A saturated sigmoid is exactly 0, which is not above 0: threshold 0 must keep it all the same.
    return (scores > limit) | (limit <= 0)


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
    return torch.cat([torch.ones_like(kept[:, :1]).expand(-1, prefix), kept], dim=1)


class Packing(NamedTuple):
    """Where the kept tokens of a batch lie."""

    rows: Tensor  # (M,) int64: each kept token's row in the flattened (B * N) tokens, ascending
    slots: Tensor  # (M,) int64: each kept token's row in the flattened (B * K) padded layout
    source: Tensor  # (B, K) int64: which of the M each padded place reads; places past an image's count repeat others
    counts: Tensor  # (B,) int64: kept tokens of each image


def pack(keep: Tensor) -> Packing:
    """Lay out the kept tokens of `keep` (B, N) bool; every image must keep at least one token.

    Written with tensor operations only (no Python number is read from `keep`): traced counts stay dynamic.
    """
    N = keep.shape[1]
    rows = keep.flatten().nonzero().squeeze(1)  # (M,)
    counts = keep.sum(dim=1)  # (B,)
    places = torch.arange(N, device=keep.device)
    used = places[places < counts.max()]  # (K,) = 0 .. K-1
    M, K = rows.shape[0], used.shape[0]
    if torch.compiler.is_compiling():  # torch.export can't see that these are never 0
        torch._check(M > 0)
        torch._check(K > 0)
    first = counts.cumsum(0) - counts  # (B,) where each image's tokens start among the M
    source = (first[:, None] + used).clamp(max=M - 1)  # (B, K)
    image = rows // N  # (M,)
    slots = torch.arange(M, device=keep.device) + (image * K - first.index_select(0, image))  # (M,)
    return Packing(rows, slots, source, counts)
