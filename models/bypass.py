"""What an idle patch may get in place of its layer: a low-rank update, for far less than the layer (2403.11808)."""

from __future__ import annotations

from torch import Tensor, nn


class Bypass(nn.Module):
    """C x rank x C on the normalised tokens, as DyT's adapter without its scale; no change at all at the start."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.act = nn.ReLU()
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, normed: Tensor) -> Tensor:
        """A layer's normalised input (B, N, C) -> what is added to each token that idles (B, N, C)."""
        update: Tensor = self.up(self.act(self.down(normed)))
        return update

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for one image in one layer: all tokens, for which ones idle is not known before."""
        return 2 * tokens * self.down.weight.numel()
