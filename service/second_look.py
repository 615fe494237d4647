"""Two looks at an image: a small input first, the full one as well where the first answer isn't sure.

Most images are easy, and a small input is enough for them; what it costs to look at the others twice is less than what
it saves (a confidence cascade; Wang et al., Glance and Focus, NeurIPS 2020, for one). Pure: it asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.batch import Answer
from service.budget import Choice
from service.cache import Computed
from service.results import Receipt, softmax


class Looked(NamedTuple):
    """An image's answer, and the one before it, if there were two looks."""

    computed: Computed
    before: Computed | None = None
    given_up: bool = False  # a second look was due, and load or the deadline forbade it


def unsure(first: Sequence[Computed], sure: float, full_px: int) -> list[int]:
    """Which of the answers give no label a probability of at least `sure`, and came from less than the full size."""
    return [
        index
        for index, one in enumerate(first)
        if one.choice.size_px < full_px and float(softmax(one.answer.logits).max()) < sure
    ]


def merge(first: Computed, choice: Choice, answer: Answer) -> Looked:
    """A second look's answer, which took the time of both."""
    both = answer._replace(
        queue_s=first.answer.queue_s + answer.queue_s, inference_s=first.answer.inference_s + answer.inference_s
    )
    return Looked(Computed(choice, both), before=first)


def add_macs(receipt: Receipt, first: Receipt) -> Receipt:
    """The receipt of a second look that pays for the first one, too."""
    return receipt._replace(
        macs_used=receipt.macs_used + first.macs_used, macs_ratio=receipt.macs_ratio + first.macs_ratio
    )
