"""What an answered request was and cost, gathered once and left in its state for who records it: log and trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.exchange import Measured
from service.results import Receipt


class Account(NamedTuple):
    """Of several images: mean threshold and share of MACs, the slowest phases, the largest batch."""

    threshold: float
    size_px: int
    images: int
    cached: int  # of the images: answered from the cache
    degraded: bool
    batch_size: int
    macs_ratio: float
    decode_s: float
    queue_s: float
    inference_s: float

    def fields(self) -> dict[str, object]:
        """As fields of a log line: durations in ms."""
        return {
            "threshold": round(self.threshold, 4),
            "size_px": self.size_px,
            "images": self.images,
            "cached": self.cached,
            "degraded": self.degraded,
            "batch_size": self.batch_size,
            "macs_ratio": round(self.macs_ratio, 4),
            "decode_ms": round(self.decode_s * 1e3, 3),
            "queue_ms": round(self.queue_s * 1e3, 3),
            "inference_ms": round(self.inference_s * 1e3, 3),
        }


def make_account(
    receipts: Sequence[Receipt],
    thresholds: Sequence[float],
    measured: Measured,
    *,
    size_px: int,
    degraded: bool = False,
    cached: int = 0,
) -> Account:
    """The account of a request from what was measured; one receipt and one threshold for each of its images."""
    return Account(
        threshold=sum(thresholds) / len(thresholds),
        size_px=size_px,
        images=len(receipts),
        cached=cached,
        degraded=degraded,
        batch_size=max(answer.batch_size for answer in measured.answers),
        macs_ratio=sum(receipt.macs_ratio for receipt in receipts) / len(receipts),
        decode_s=measured.decode_s,
        queue_s=measured.queue_s,
        inference_s=measured.inference_s,
    )
