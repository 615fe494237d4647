from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from service.batch import Answer
from service.budget import Choice
from service.cache import AnswerCache, Computed
from tests.fakes import fake_manifest

FULL, HALF, ECONOMY = Choice(28, 0.0), Choice(28, 0.5), Choice(14, 0.5)
ROW_BYTES = 4 * 4 + 3 * 16 + 1024


class Engine:
    """Answers with a number that grows; waits while it is held."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def __call__(self, images: Sequence[bytes]) -> list[Answer]:
        self.asked.append(list(images))
        mark = len(self.asked)
        await self.open.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        kept = np.ones((3, 16), np.bool_)
        return [Answer(np.full(4, mark, np.float32), kept, 1, 0.5, 0.5) for _ in images]


def cache_of(max_bytes: int = 10 * ROW_BYTES) -> tuple[AnswerCache, list[str]]:
    found: list[str] = []

    def on_store(held_bytes: int) -> None:
        assert held_bytes <= max_bytes

    return AnswerCache(fake_manifest(), max_bytes, on_find=found.append, on_store=on_store), found


def marks(computed: Sequence[Computed]) -> list[int]:
    return [int(one.answer.logits[0]) for one in computed]


async def test_an_image_seen_before_isnt_computed_again_and_says_so() -> None:
    cache, found = cache_of()
    engine = Engine()
    (first,) = await cache.answers([b"a"], HALF, engine)
    (second,) = await cache.answers([b"a"], HALF, engine)
    assert not first.cached
    assert second.cached
    assert second.answer.inference_s == second.answer.queue_s == 0
    assert engine.asked == [[b"a"]]
    assert found == ["miss", "hit"]


async def test_more_compute_answers_for_less_and_never_the_other_way() -> None:
    cache, _ = cache_of()
    engine = Engine()
    await cache.answers([b"a"], HALF, engine)
    assert (await cache.answers([b"a"], ECONOMY, engine))[0].choice == HALF
    assert not (await cache.answers([b"a"], FULL, engine))[0].cached
    assert (await cache.answers([b"a"], HALF, engine))[0].choice == FULL  # the better answer took its place
    assert len(engine.asked) == 2


async def test_an_answer_with_less_doesnt_push_out_one_with_more() -> None:
    cache, _ = cache_of()
    engine = Engine()
    engine.open.clear()
    less = asyncio.create_task(cache.answers([b"a"], ECONOMY, engine))
    await asyncio.sleep(0)
    more = asyncio.create_task(cache.answers([b"a"], FULL, engine))
    await asyncio.sleep(0)
    engine.open.set()
    await asyncio.gather(less, more)
    assert len(engine.asked) == 2  # what is being computed with less is no answer for more
    assert (await cache.answers([b"a"], FULL, engine))[0].cached


async def test_the_same_image_twice_at_once_is_computed_once() -> None:
    cache, found = cache_of()
    engine = Engine()
    engine.open.clear()
    both = [asyncio.create_task(cache.answers([b"a"], HALF, engine)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    engine.open.set()
    assert [marks(await one) for one in both] == [[1]] * 3
    assert engine.asked == [[b"a"]]
    assert found == ["miss", "coalesced", "coalesced"]


async def test_the_same_image_twice_in_one_request_is_computed_once() -> None:
    cache, _ = cache_of()
    engine = Engine()
    assert marks(await cache.answers([b"a", b"b", b"a"], HALF, engine)) == [1, 1, 1]
    assert engine.asked == [[b"a", b"b"]]


@pytest.mark.parametrize("how", ["fails", "leaves"])
async def test_who_waits_for_anothers_computation_outlives_it(how: str) -> None:
    cache, _ = cache_of()
    engine = Engine()
    engine.open.clear()
    leader = asyncio.create_task(cache.answers([b"a"], HALF, engine))
    await asyncio.sleep(0)
    follower = asyncio.create_task(cache.answers([b"a"], HALF, engine))
    await asyncio.sleep(0)
    if how == "leaves":
        leader.cancel()
    else:
        engine.error = ValueError("broken")
    engine.open.set()
    await asyncio.wait({leader})
    assert leader.cancelled() if how == "leaves" else isinstance(leader.exception(), ValueError)
    assert marks(await follower) == [2]


async def test_bytes_are_bounded_and_the_oldest_used_leaves() -> None:
    cache, _ = cache_of(2 * ROW_BYTES)
    engine = Engine()
    for image in (b"a", b"b"):
        await cache.answers([image], HALF, engine)
    await cache.answers([b"a"], HALF, engine)
    await cache.answers([b"c"], HALF, engine)
    assert (await cache.answers([b"a"], HALF, engine))[0].cached
    assert not (await cache.answers([b"b"], HALF, engine))[0].cached


async def test_a_cache_keeps_no_view_of_a_whole_batch() -> None:
    cache, _ = cache_of()
    batch = np.zeros((32, 4), np.float32)

    async def compute(images: Sequence[bytes]) -> list[Answer]:
        return [Answer(batch[0], np.ones((3, 16), np.bool_), 32, 0.0, 0.0)]

    await cache.answers([b"a"], HALF, compute)
    (held,) = await cache.answers([b"a"], HALF, compute)
    assert held.answer.logits.base is None
