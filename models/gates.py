"""The gates: one light module a layer that scores every patch. They know no thresholds and make no decisions.

Any criterion is a `Gate`: tokens in, one logit a patch out; the score is its sigmoid. `GATES` names them all: the
product's own, the write-up's, and the rivals' that they are compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.labels import scaled_cosine_similarity


class Gate(nn.Module, ABC):
    """Scores the patches of a layer's input."""

    @abstractmethod
    def forward(self, block: Block, x: Tensor, normed: Tensor, prefix: int) -> Tensor:
        """Logits (B, P) float, one a patch.

        Args:
            block: the gated layer, for criteria that read its weights.
            x: (B, N, C) the layer's input tokens, `prefix` prefix tokens first.
            normed: (B, N, C) the same after the layer's first norm, which the layer needs anyway.
            prefix: how many tokens are no patches.
        """

    @abstractmethod
    def macs(self, patches: int, width: int) -> int:
        """Multiply-accumulates for one image in one layer."""


class MLPGate(Gate):
    """The write-up's gate: C x hidden x 1 on the raw hidden state of each patch alone."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, block: Block, x: Tensor, normed: Tensor, prefix: int) -> Tensor:
        B, N, C = x.shape
        patches = x[:, prefix:].reshape(-1, C)  # (B * P, C)
        return self.fc2(self.act(self.fc1(patches))).reshape(B, N - prefix)

    def macs(self, patches: int, width: int) -> int:
        return patches * (width + 1) * self.fc1.out_features


class ContextGate(Gate):
    """A patch seen in its image: C x hidden x 1 on the normalised patch, plus per-image terms in the hidden layer.

    The terms come from the CLS token and from the mean of the normalised patches. They answer the write-up's fourth
    open point (its gate saw one patch alone) for the price of two more patches an image, not of all of them.
    """

    def __init__(self, width: int, hidden: int = 64, cls: bool = True, mean: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.cls = nn.Linear(width, hidden, bias=False) if cls else None
        self.mean = nn.Linear(width, hidden, bias=False) if mean else None
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, block: Block, x: Tensor, normed: Tensor, prefix: int) -> Tensor:
        B, N, _ = x.shape
        patches = normed[:, prefix:]
        terms = []
        if self.cls is not None:
            terms.append((self.cls.weight, normed[:, 0]))
        if self.mean is not None:
            terms.append((self.mean.weight, patches.mean(1)))
        shift: Tensor = self.fc1.bias
        if terms:  # both in one product
            weights, seen = zip(*terms, strict=True)
            shift = F.linear(torch.cat(seen, 1), torch.cat(weights, 1), self.fc1.bias)[:, None]  # (B, 1, hidden)
        hidden = F.linear(patches, self.fc1.weight) + shift  # (B, P, hidden)
        return self.fc2(self.act(hidden)).reshape(B, N - prefix)

    def macs(self, patches: int, width: int) -> int:
        terms = (self.cls is not None) + (self.mean is not None)
        return (patches * (width + 1) + terms * width) * self.fc1.out_features


class RandomGate(Gate):
    """A rival: uniformly random scores, so that a threshold skips that share of the patches."""

    def forward(self, block: Block, x: Tensor, normed: Tensor, prefix: int) -> Tensor:
        return torch.rand_like(x[:, prefix:, 0]).logit(eps=1e-6)

    def macs(self, patches: int, width: int) -> int:
        return 0


class ClsAttentionGate(Gate):
    """A rival, IdleViT's and EViT's criterion (2310.05654, 2202.07800): the CLS token's attention to each patch.

    Scores are ranks within the image, so that a threshold skips that share of every image's patches: the same number
    for easy and hard ones, as these methods do. The layer's own query and keys are used, averaged over heads.
    """

    def forward(self, block: Block, x: Tensor, normed: Tensor, prefix: int) -> Tensor:
        attn = block.attn
        B, N, C = normed.shape
        query, key, _ = attn.qkv(normed.detach()).reshape(B, N, 3, attn.num_heads, attn.head_dim).unbind(2)
        query, key = attn.q_norm(query[:, 0]), attn.k_norm(key)  # (B, h, d), (B, N, h, d)
        weights = torch.einsum("bhd,bnhd->bhn", query, key * attn.scale).softmax(-1).mean(1)[:, prefix:]
        rank = weights.argsort(-1).argsort(-1)  # (B, P), 0 for the least attended patch
        return ((rank + 0.5) / rank.shape[-1]).to(x.dtype).logit()

    def macs(self, patches: int, width: int) -> int:
        return width * width + (patches + 1) * width  # the CLS query, and its products with keys computed anyway


class CosineGate(Gate):
    """A rival that can't be built: the published gate if it were never wrong. It runs the layer to see what changes.

    The score is 1 minus the scaled cosine similarity of a patch before and after, so that a threshold of 0.2 keeps what
    the label at cosine threshold 0.8 keeps. What it finds out that way is not counted as a cost.
    """

    def forward(self, block: Block, x: Tensor, normed: Tensor, prefix: int) -> Tensor:
        similarity = scaled_cosine_similarity(x[:, prefix:].float(), block(x)[:, prefix:].float())
        return (1 - similarity).to(x.dtype).logit(eps=1e-6)

    def macs(self, patches: int, width: int) -> int:
        return 0


GATES: dict[str, Callable[[int, int], Gate]] = {
    "mlp": MLPGate,
    "context": ContextGate,
    "context_cls": partial(ContextGate, mean=False),
    "context_mean": partial(ContextGate, cls=False),
    "normed": partial(ContextGate, cls=False, mean=False),
    "random": lambda width, hidden: RandomGate(),
    "cls_attention": lambda width, hidden: ClsAttentionGate(),
    "cosine": lambda width, hidden: CosineGate(),
}


def build_gate(name: str, width: int, hidden: int) -> Gate:
    """The gate called `name` for tokens of `width` values; ValueError lists the names there are."""
    if name not in GATES:
        raise ValueError(f"gate {name!r} isn't one of {', '.join(GATES)}")
    return GATES[name](width, hidden)
