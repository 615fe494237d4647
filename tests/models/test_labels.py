"""The write-up's labels."""

from __future__ import annotations

import pytest
import torch

from models.labels import keep_labels, scaled_cosine_similarity


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 0.0], [1.0, 0.0], 1.0),  # nothing changed
        ([1.0, 0.0], [0.0, 1.0], 0.25 + 0.5 / 3),  # a right angle: cos 0, |dx|^2 / |x'|^2 = 2
        ([1.0, 0.0], [-1.0, 0.0], 0.5 / 5),  # opposite: cos -1, ratio 4
        ([1.0, 0.0], [2.0, 0.0], 0.5 + 0.5 / 1.25),  # the same direction, twice the length: ratio 1/4
    ],
)
def test_similarity_by_hand(before: list[float], after: list[float], expected: float) -> None:
    found = scaled_cosine_similarity(torch.tensor(before), torch.tensor(after))
    assert found.item() == pytest.approx(expected)


def test_a_patch_that_changed_is_kept_and_one_that_did_not_is_skipped() -> None:
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[1.0, 0.01], [0.0, 1.0]])
    assert keep_labels(before, after, 0.95).tolist() == [False, True]
