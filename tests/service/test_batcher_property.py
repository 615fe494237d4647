"""Whatever happens in whatever order: every accepted image resolves exactly once, with its own answer."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from service.batch import Answer
from service.errors import DeadlinePassed, InferenceFailed
from tests.fakes import CLASSES, GATED, PATCHES, SIZES, FakeClock, FakeEngine
from tests.service.test_batcher import image, label, running

Step = tuple[str, int, int, float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "cancelled", "expired", "yield", "hold", "release"]),
        st.integers(0, 90),
        st.sampled_from(sorted(SIZES)),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=80)
@given(
    steps=STEPS,
    max_batch_size=st.integers(1, 5),
    poison=st.frozensets(st.integers(0, 90), max_size=20),
    two=st.booleans(),
)
def test_whatever_comes_every_image_resolves_once_with_its_own_answer(
    steps: list[Step], max_batch_size: int, poison: frozenset[int], two: bool
) -> None:
    asyncio.run(play(steps, max_batch_size, poison, two))


async def play(steps: list[Step], max_batch_size: int, poison: frozenset[int], two: bool) -> None:
    engine, beside = FakeEngine(poison=poison), FakeEngine(poison=poison)
    engine.beside = beside if two else None
    clock, rows = FakeClock(), list[int]()
    submitted: list[tuple[Step, asyncio.Future[Answer], list[object]]] = []
    async with running(
        engine, max_batch_size=max_batch_size, max_pending=1000, clock=clock, on_batch=lambda one: rows.append(one.rows)
    ) as batcher:
        for step in steps:
            fate, value, size_px, threshold = step
            if fate in ("submit", "cancelled", "expired"):
                deadline = clock() if fate == "expired" else clock() + 1000
                future = batcher.submit(image(value, size_px), threshold, deadline)
                resolutions: list[object] = []
                future.add_done_callback(resolutions.append)
                submitted.append((step, future, resolutions))
                if fate == "cancelled":
                    future.cancel()
            elif fate == "yield":
                await asyncio.sleep(0)
            else:
                getattr((engine, beside)[value % 2], fate)()
        engine.release()
        beside.release()
        assert await batcher.drain(10)
    for (fate, value, size_px, threshold), future, resolutions in submitted:
        assert len(resolutions) == 1
        if fate == "cancelled":
            assert future.cancelled()
        elif fate == "expired":
            assert isinstance(future.exception(), DeadlinePassed)
        elif value in poison:
            assert isinstance(future.exception(), InferenceFailed)
        else:
            answer = future.result()
            patches = PATCHES[size_px]
            assert label(answer) == value % CLASSES
            assert answer.kept.shape[1] == patches
            assert int(answer.kept[GATED[0]].sum()) == patches - round(threshold * patches)
    assert all(len(batch) <= max_batch_size for batch in engine.batches + beside.batches)
    assert sum(rows) == sum(fate == "submit" and value not in poison for fate, value, *_ in (s for s, *_ in submitted))
