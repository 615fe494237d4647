"""The gates: one light module a layer that scores every patch. They know no thresholds and make no decisions.

Any criterion is a `Gate`: tokens in, one logit a patch out; the score is its sigmoid.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Gate(Protocol):
    """Scores the patches of a layer's input."""

    def __call__(self, x: Tensor, prefix: int) -> Tensor:
        """Tokens (B, N, C) with `prefix` prefix tokens -> logits (B, P); the score is their sigmoid."""
        ...


class MLPGate(nn.Module):
    """The write-up's gate: C x hidden x 1 on the raw hidden state of each patch alone."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        B, N, C = x.shape
        patches = x[:, prefix:].reshape(-1, C)  # (B * P, C)
        return self.fc2(self.act(self.fc1(patches))).reshape(B, N - prefix)
