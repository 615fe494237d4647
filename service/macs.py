"""What an answer cost: MACs from the patches that were kept. Pure; the terms come from the bundle's manifest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.artifact import Graph


def used_macs(graph: Graph, kept_counts: NDArray[np.integer], gated: bool | NDArray[np.bool_]) -> NDArray[np.int64]:
    """MACs spent by a graph that kept `kept_counts` (..., L) patches in its layers; returns (...) int64.

    Each layer costs `constant + per_kept * k + per_kept_squared * k**2`; patch embedding and head cost a fixed sum.
    `gated` (...): did gates run? They don't at threshold 0, where there is nothing to decide: the dense model's cost.
    """
    if not np.any(gated):
        return np.full(kept_counts.shape[:-1], graph.dense_macs)
    constant, per_kept, per_kept_squared = graph.macs_terms
    k = kept_counts.astype(np.int64)
    layers = constant + (per_kept + per_kept_squared * k) * k  # (..., L)
    total: NDArray[np.int64] = graph.fixed_macs + layers.sum(axis=-1)
    return np.where(gated, total, graph.dense_macs)
