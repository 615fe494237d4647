from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.batch import Answer, BatchStats
from service.batcher import Batcher
from service.cost import CostModel
from service.engine import EngineOutput
from service.errors import DeadlinePassed, InferenceFailed, NotReady, Overloaded
from tests.fakes import GATED, FakeClock, FakeEngine, fake_manifest


def image(value: int, size_px: int = 28) -> NDArray[np.uint8]:
    return np.full((size_px, size_px, 3), value, np.uint8)


@asynccontextmanager
async def running(engine: FakeEngine, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, CostModel(fake_manifest()), **{"max_batch_size": 8, "max_pending": 64, **options})
    batcher.start()
    try:
        yield batcher
    finally:
        engine.release()
        if engine.beside is not None:
            engine.beside.release()
        await batcher.drain(10)


async def busy(engine: FakeEngine, batcher: Batcher) -> asyncio.Future[Answer]:
    """Make the engine hold a batch with one image of value 99."""
    engine.hold()
    future = batcher.submit(image(99), 0.0, None)
    assert await asyncio.to_thread(engine.entered.wait, 10)
    return future


def label(answer: Answer) -> int:
    return int(answer.logits.argmax())


async def test_an_idle_engine_takes_what_is_there_at_once() -> None:
    engine, stats = FakeEngine(), list[BatchStats]()
    async with running(engine, on_batch=stats.append) as batcher:
        answer = await batcher.submit(image(6), 0.0, None)
    assert label(answer) == 2
    assert answer.batch_size == 1
    assert [(one.rows, one.reason, one.size_px) for one in stats] == [(1, "idle", 28)]


async def test_images_of_one_request_share_a_batch_and_get_their_own_rows() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        answers = await asyncio.gather(*batcher.submit_many([image(v) for v in range(4)], [0.0] * 4, None))
    assert engine.batches == [[0, 1, 2, 3]]
    assert [label(answer) for answer in answers] == [0, 1, 2, 3]


async def test_what_arrives_while_the_engine_runs_makes_the_next_batch() -> None:
    engine, stats = FakeEngine(), list[BatchStats]()
    async with running(engine, on_batch=stats.append) as batcher:
        first = await busy(engine, batcher)
        others = [batcher.submit(image(value), 0.0, None) for value in range(3)]
        engine.release()
        await asyncio.gather(first, *others)
    assert engine.batches == [[99], [0, 1, 2]]
    assert [one.reason for one in stats] == ["idle", "busy"]


async def test_the_engine_takes_its_next_batch_while_the_loop_is_busy() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        first = await busy(engine, batcher)
        others = [batcher.submit(image(value), 0.0, None) for value in (2, 3)]
        late = batcher.submit(image(1), 0.0, clock() + 5)
        clock.advance(10)
        entered = threading.Event()
        engine.on_batch = entered.set
        engine.release()
        assert entered.wait(10), "the engine waited for the loop, which waits here"
        assert not first.done()
        first.cancel()  # its answer is on the way: nothing is terminated, least of all the next run
        answers = await asyncio.gather(*others)
        with pytest.raises(DeadlinePassed):
            await late
    assert engine.batches == [[99], [2, 3]]
    assert [label(answer) for answer in answers] == [2, 3]
    assert engine.terminated == 0


async def test_who_comes_in_the_same_turn_of_the_loop_shares_a_batch() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        await batcher.submit(image(9), 0.0, None)
        await batcher.idle.wait()
        await asyncio.gather(*(batcher.submit(image(value), 0.0, None) for value in range(3)))
    assert engine.batches == [[9], [0, 1, 2]]


async def test_a_full_batch_leaves_the_rest_to_the_next() -> None:
    engine, stats = FakeEngine(), list[BatchStats]()
    async with running(engine, max_batch_size=2, on_batch=stats.append) as batcher:
        first = await busy(engine, batcher)
        others = [batcher.submit(image(value), 0.0, None) for value in range(5)]
        engine.release()
        await asyncio.gather(first, *others)
    assert engine.batches == [[99], [0, 1], [2, 3], [4]]
    assert [one.reason for one in stats] == ["idle", "full", "full", "busy"]


async def test_a_batch_holds_one_size_and_the_oldest_image_decides_which() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        sizes = [14, 28, 14, 28, 28]
        others = [batcher.submit(image(value, size), 0.0, None) for value, size in enumerate(sizes)]
        engine.release()
        await asyncio.gather(first, *others)
    assert engine.batches == [[99], [0, 2], [1, 3, 4]]
    assert engine.sizes == [28, 14, 28]


async def test_thresholds_mix_in_one_batch() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        futures = batcher.submit_many([image(0)] * 3, [0.0, 0.5, 1.0], None)
        answers = await asyncio.gather(*futures)
    assert len(engine.batches) == 1
    assert [int(answer.kept[GATED[0]].sum()) for answer in answers] == [16, 8, 0]


async def test_cancelled_images_never_reach_the_engine() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        futures = [batcher.submit(image(value), 0.0, None) for value in range(4)]
        futures[0].cancel()
        futures[2].cancel()
        engine.release()
        answers = await asyncio.gather(first, futures[1], futures[3])
    assert sorted(engine.batches[1]) == [1, 3]
    assert [label(answer) for answer in answers[1:]] == [1, 3]


async def test_a_batch_of_cancelled_images_is_not_run() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        batcher.submit(image(1, 14), 0.0, None).cancel()
        last = batcher.submit(image(2), 0.0, None)
        engine.release()
        await asyncio.gather(first, last)
    assert engine.batches == [[99], [2]]


async def test_room_left_by_cancelled_images_goes_to_those_who_found_the_batch_full() -> None:
    engine = FakeEngine()
    async with running(engine, max_batch_size=2) as batcher:
        first = await busy(engine, batcher)
        futures = [batcher.submit(image(value), 0.0, None) for value in range(4)]
        futures[0].cancel()
        engine.release()
        await asyncio.gather(first, *futures[1:])
    assert engine.batches == [[99], [1, 2], [3]]


async def test_images_past_their_deadline_never_reach_the_engine() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        first = await busy(engine, batcher)
        late = batcher.submit(image(1), 0.0, clock() + 5)
        in_time = batcher.submit(image(2), 0.0, clock() + 50)
        clock.advance(10)
        engine.release()
        await asyncio.gather(first, in_time)
        with pytest.raises(DeadlinePassed):
            await late
    assert engine.batches == [[99], [2]]


async def test_a_deadline_is_told_in_time_although_the_engine_hangs() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        first = await busy(engine, batcher)
        with pytest.raises(DeadlinePassed):
            await batcher.submit(image(1), 0.0, clock() + 0.001)
        assert not first.done()


@pytest.mark.parametrize(
    "engine", [FakeEngine(poison=frozenset({2})), FakeEngine(not_finite=frozenset({2}))], ids=["raises", "not finite"]
)
async def test_only_the_culprit_fails_and_the_loop_lives_on(engine: FakeEngine) -> None:
    stats = list[BatchStats]()
    async with running(engine, on_batch=stats.append) as batcher:
        results = await asyncio.gather(
            *batcher.submit_many([image(value) for value in range(4)], [0.0] * 4, None), return_exceptions=True
        )
        assert isinstance(results[2], InferenceFailed)
        assert [label(result) for result in results if isinstance(result, Answer)] == [0, 1, 3]
        with pytest.raises(InferenceFailed):
            await batcher.submit(image(2), 0.0, None)
        assert label(await batcher.submit(image(1), 0.0, None)) == 1
    assert [one.reason for one in stats] == ["retry", "retry", "retry", "idle"]


class ForgetfulEngine(FakeEngine):
    """Loses the last row of every batch of more than one."""

    def infer(self, images: NDArray[np.uint8], threshold: NDArray[np.float32]) -> EngineOutput:
        logits, kept = super().infer(images, threshold)
        rows = max(1, len(images) - 1)
        return EngineOutput(logits[:rows], kept[:rows])


async def test_a_wrong_number_of_rows_is_never_handed_out() -> None:
    engine = ForgetfulEngine()
    async with running(engine) as batcher:
        answers = await asyncio.gather(*batcher.submit_many([image(0), image(1)], [0.0, 0.0], None))
    assert [label(answer) for answer in answers] == [0, 1]
    assert engine.batches == [[0, 1], [0], [1]]


async def test_an_observer_that_fails_takes_no_answer_with_it() -> None:
    def observe(stats: BatchStats) -> None:
        raise ValueError("observer")

    async with running(FakeEngine(), on_batch=observe) as batcher:
        for value in range(3):
            assert label(await batcher.submit(image(value), 0.0, None)) == value


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_pending=3) as batcher:
        engine.on_batch = lambda: clock.advance(2.0)  # every batch takes two seconds
        await batcher.submit(image(0), 0.0, None)
        await busy(engine, batcher)
        waiting = [batcher.submit(image(value), 0.0, None) for value in range(3)]
        with pytest.raises(Overloaded) as caught:
            batcher.submit(image(4), 0.0, None)
        assert caught.value.retry_after_s == pytest.approx(6.0)  # three at two seconds each; the running one is due
        assert batcher.pending == 4
        assert batcher.work.pending_work_s == pytest.approx(6.0)
        engine.release()
        await asyncio.gather(*waiting)
        assert batcher.pending == 0


async def test_a_request_of_several_images_is_taken_whole_or_not_at_all() -> None:
    engine = FakeEngine()
    async with running(engine, max_pending=4) as batcher:
        await busy(engine, batcher)
        batcher.submit_many([image(0)] * 2, [0.0] * 2, None)
        with pytest.raises(Overloaded):
            batcher.submit_many([image(0)] * 3, [0.0] * 3, None)
        assert batcher.pending == 3


async def test_dead_images_make_room_when_the_queue_is_full() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, max_pending=2, max_batch_size=1, clock=clock) as batcher:
        await busy(engine, batcher)
        cancelled = batcher.submit(image(1), 0.0, None)
        expired = batcher.submit(image(2), 0.0, clock() + 1)
        cancelled.cancel()
        clock.advance(2)
        kept = batcher.submit_many([image(3), image(4)], [0.0, 0.0], None)
        engine.release()
        await asyncio.gather(*kept)
        assert isinstance(expired.exception(), DeadlinePassed)
    assert engine.batches == [[99], [3], [4]]


async def test_phases_are_measured_with_the_clock() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        first = await busy(engine, batcher)
        engine.on_batch = lambda: clock.advance(0.5)
        second = batcher.submit(image(1), 0.0, None)
        clock.advance(3)
        engine.release()
        answer = await second
        assert (await first).inference_s == pytest.approx(3)
    assert answer.queue_s == pytest.approx(3)
    assert answer.inference_s == pytest.approx(0.5)


async def test_a_hung_engine_shows_as_a_stall_and_idleness_doesnt() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        clock.advance(1000)
        assert batcher.stalled_s == 0
        first = await busy(engine, batcher)
        assert batcher.stalled_s == 0
        clock.advance(100)
        assert batcher.stalled_s == 100
        engine.release()
        await first


async def test_a_thread_that_is_gone_shows_as_an_endless_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = FakeEngine(), list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def end() -> None:
        raise SystemExit

    engine.on_batch = end
    async with running(engine) as batcher:
        waiting = batcher.submit(image(1), 0.0, None)
        while batcher.stalled_s < math.inf:
            await asyncio.sleep(0.001)
    assert isinstance(waiting.exception(), NotReady)
    assert [args.exc_type for args in seen] == [SystemExit]


async def test_before_the_start_nothing_is_accepted() -> None:
    batcher = Batcher(FakeEngine(), CostModel(fake_manifest()), max_batch_size=1, max_pending=1)
    with pytest.raises(NotReady):
        batcher.submit(image(1), 0.0, None)
