"""Two looks at an image: a small input first, a larger one as well where the first answer isn't sure.

Most images are easy, and a small input is enough for them; what it costs to look at the others twice is less than what
it saves (a confidence cascade; Wang et al., Glance and Focus, NeurIPS 2020, for one). Pure: it asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.artifact import Manifest
from service.budget import Choice, dominates, second_of
from service.cache import Computed
from service.results import Receipt, softmax


class Looked(NamedTuple):
    """An image's answer, and the one before it, if there were two looks."""

    computed: Computed
    before: Computed | None = None
    given_up: bool = False  # a second look was due, and load or the deadline forbade it


def unsure(manifest: Manifest, first: Sequence[Computed], choice: Choice) -> list[int]:
    """Which answers give no label the probability that `choice` wants, and had less than its second look."""
    second = second_of(manifest, choice)
    if second is None:
        return []
    return [
        index
        for index, one in enumerate(first)
        if _probability(one) < choice.sure and not dominates(manifest, one.choice, second)
    ]


def falls_short(manifest: Manifest, looked: Looked, wanted: Choice) -> bool:
    """Whether an image got less than `wanted` would have given it."""
    second = second_of(manifest, wanted)
    if second is not None and dominates(manifest, looked.computed.choice, second):
        return False
    for one in (looked.before, looked.computed):
        if one is not None and dominates(manifest, one.choice, wanted):  # as good as the first look wanted
            return second is not None and _probability(one) < wanted.sure
    return True


def _probability(one: Computed) -> float:
    """Of the first label."""
    return float(softmax(one.answer.logits).max())


def merge(first: Computed, second: Computed) -> Looked:
    """A second look's answer, which took the time of both."""
    one, two = first.answer, second.answer
    both = two._replace(queue_s=one.queue_s + two.queue_s, inference_s=one.inference_s + two.inference_s)
    return Looked(Computed(second.choice, both, first.cached and second.cached), before=first)


def add_macs(receipt: Receipt, first: Receipt) -> Receipt:
    """The receipt of a second look that pays for the first one, too."""
    return receipt._replace(
        macs_used=receipt.macs_used + first.macs_used, macs_ratio=receipt.macs_ratio + first.macs_ratio
    )
