"""Batches are bounded by predicted work, urgent images go first, and a run that nobody waits for is ended."""

from __future__ import annotations

import asyncio

import pytest

from service.batch import BatchStats
from service.errors import Overloaded
from tests.fakes import FakeClock, FakeEngine
from tests.service.test_batcher import busy, image, running


async def test_a_batch_ends_where_its_predicted_work_is_used_up() -> None:
    engine, clock, stats = FakeEngine(), FakeClock(), list[BatchStats]()
    async with running(engine, clock=clock, max_batch_work_s=2.5, on_batch=stats.append) as batcher:
        engine.on_batch = lambda: clock.advance(1.0)  # which teaches that an image at threshold 0 takes a second
        await batcher.submit(image(0), 0.0, None)
        first = await busy(engine, batcher)
        dear = [batcher.submit(image(value), 0.0, None) for value in range(3)]
        cheap = [batcher.submit(image(value), 1.0, None) for value in range(10, 18)]
        engine.release()
        await asyncio.gather(first, *dear, *cheap)
    assert engine.batches[2] == [0, 1, 10]  # 1 + 1 + 0.3; the third dear one doesn't fit, the first cheap one does
    assert stats[2].reason == "cost"
    assert engine.batches[3][0] == 2  # who was passed over goes first next time


async def test_an_image_dearer_than_a_batch_may_be_goes_alone() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_work_s=0.5) as batcher:
        engine.on_batch = lambda: clock.advance(1.0)
        await batcher.submit(image(0), 0.0, None)
        await batcher.idle.wait()  # an answer may come before the prediction has learned from its run
        await asyncio.gather(*batcher.submit_many([image(1), image(2)], [0.0, 0.0], None))
    assert engine.batches == [[0], [1], [2]]


async def test_who_has_a_sooner_deadline_goes_first_even_if_others_are_staged() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2) as batcher:
        first = await busy(engine, batcher)
        patient = [batcher.submit(image(value), 0.0, clock() + 30) for value in range(2)]
        urgent = batcher.submit(image(7), 0.0, clock() + 0.5)
        engine.release()
        await asyncio.gather(first, *patient, urgent)
    assert engine.batches == [[99], [7, 0], [1]]


async def test_after_its_patience_nobody_overtakes_an_image() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        first = await busy(engine, batcher)
        patient = batcher.submit(image(0), 0.0, clock() + 30)
        clock.advance(1.01)
        urgent = batcher.submit(image(7), 0.0, clock() + 0.5)
        engine.release()
        await asyncio.gather(first, patient, urgent)
    assert engine.batches == [[99], [0], [7]]


async def test_the_queue_is_bounded_in_seconds_of_work() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_pending_work_s=2.5) as batcher:
        engine.on_batch = lambda: clock.advance(1.0)
        await batcher.submit(image(0), 0.0, None)
        first = await busy(engine, batcher)
        accepted = [batcher.submit(image(value), 0.0, None) for value in range(3)]
        with pytest.raises(Overloaded, match=r"3 images wait, which take 3\.00 s"):
            batcher.submit(image(9), 0.0, None)
        accepted[0].cancel()
        accepted.append(batcher.submit(image(9), 0.0, None))  # who left takes no room
        engine.release()
        await asyncio.gather(first, *accepted[1:])


async def test_second_looks_to_come_are_counted_before_and_admitted_when_they_come() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_pending_work_s=2.5) as batcher:
        engine.on_batch = lambda: clock.advance(1.0)
        await batcher.submit(image(0), 0.0, None)
        one_s = batcher._cost.macs(28, 0.0)
        first = await busy(engine, batcher)
        waiting = batcher.submit_many([image(1)], [0.0], clock() + 30, later_macs=1.75 * one_s)
        assert batcher.work.pending_work_s == pytest.approx(2.75)
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 99) == pytest.approx(2.75 + 1.0)
        with pytest.raises(Overloaded, match=r"1 images wait, which take 2\.75 s"):
            batcher.submit(image(9), 0.0, None)
        second = batcher.submit_many([image(5)], [0.0], None, since_s=clock())
        engine.release()
        await asyncio.gather(first, *waiting, *second)


async def test_a_second_look_goes_before_those_who_came_after_its_first() -> None:
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        started_s = clock()
        first = await busy(engine, batcher)
        clock.advance(0.1)
        newer = batcher.submit(image(3), 0.0, None)
        second = batcher.submit_many([image(4)], [0.0], None, since_s=started_s)
        engine.release()
        await asyncio.gather(first, newer, *second)
    assert engine.batches == [[99], [4], [3]]


async def test_a_run_that_nobody_waits_for_is_terminated() -> None:
    engine, ended = FakeEngine(), list[bool]()
    async with running(engine, on_terminate=lambda: ended.append(True)) as batcher:
        engine.hold()
        futures = batcher.submit_many([image(1), image(2)], [0.0, 0.0], None)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        futures[0].cancel()
        await asyncio.sleep(0)
        assert engine.terminated == 0
        futures[1].cancel()
        assert (await batcher.submit(image(3), 0.0, None)).batch_size == 1
    assert engine.terminated == 1
    assert ended == [True]


async def test_a_run_that_ends_by_itself_isnt_terminated() -> None:
    engine = FakeEngine()
    async with running(engine) as batcher:
        for value in range(5):
            await batcher.submit(image(value), 0.0, None)
        await asyncio.sleep(0)
    assert engine.terminated == 0


async def test_predictions_learn_from_runs() -> None:
    engine, clock, stats = FakeEngine(), FakeClock(), list[BatchStats]()
    async with running(engine, clock=clock, on_batch=stats.append) as batcher:
        engine.on_batch = lambda: clock.advance(1.0)
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 9) == 0  # nothing is known yet
        await batcher.submit(image(0), 0.0, None)
        await batcher.idle.wait()
        assert batcher.work.run_s(28, 0.0, 2) == pytest.approx(2.0)
        await busy(engine, batcher)
        waiting = batcher.submit(image(1), 0.0, None)
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 9) == pytest.approx(2.0)  # the one that waits, then its own
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 0.1) == pytest.approx(2.0)  # first, but in one batch with it
        engine.release()
        await waiting
    assert stats[0].prediction_error_ratio is None
    assert stats[1].prediction_error_ratio == pytest.approx(1.0)
