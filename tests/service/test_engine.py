"""What any engine's answer is checked for, and how one is warmed up."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine import EngineOutput, check_output, warm_up
from service.errors import InferenceFailed
from tests.fakes import FakeEngine, fake_manifest


def test_warming_up_runs_the_largest_batch_of_the_largest_size_first_then_every_size_twice() -> None:
    engine = FakeEngine()
    warm_up(engine, fake_manifest().sizes_px, max_batch_size=5)
    assert [len(batch) for batch in engine.batches] == [5, 1, 1, 1, 1]
    assert engine.sizes == [28, 28, 28, 14, 14]  # with gates and without


def test_two_that_run_at_once_share_the_largest_batch() -> None:
    engine, beside = FakeEngine(), FakeEngine()
    engine.beside = beside
    warm_up(engine, fake_manifest().sizes_px, max_batch_size=5)
    assert [len(batch) for batch in engine.batches] == [3, 1, 1, 1, 1]
    assert [len(batch) for batch in beside.batches] == [3]


@pytest.mark.parametrize(
    ("logits", "kept"), [((2, 4), (3, 2, 4)), ((3, 4), (2, 2, 4)), ((3,), (3, 2, 4)), ((3, 4), (3, 2))]
)
def test_wrong_shapes_are_found(logits: tuple[int, ...], kept: tuple[int, ...]) -> None:
    with pytest.raises(InferenceFailed):
        check_output(EngineOutput(np.zeros(logits, np.float32), np.ones(kept, np.bool_)), rows=3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_found(value: float) -> None:
    with pytest.raises(InferenceFailed, match="finite"):
        check_output(EngineOutput(np.full((1, 4), value, np.float32), np.ones((1, 2, 4), np.bool_)), rows=1)
