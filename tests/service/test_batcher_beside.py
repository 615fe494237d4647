"""Two runs at once: what comes while the engine runs goes to the one beside it, with the same promises."""

from __future__ import annotations

import asyncio
import threading
import weakref

import numpy as np
import pytest
from numpy.typing import NDArray

from service.batch import BatchStats
from service.errors import InferenceFailed, NotReady
from service.metrics import Metrics
from service.runner import Share
from tests.fakes import FakeClock, FakeEngine, fake_manifest
from tests.service.test_batcher import busy, image, label, running


def pair() -> tuple[FakeEngine, FakeEngine]:
    engine, beside = FakeEngine(), FakeEngine()
    engine.beside = beside
    return engine, beside


async def test_what_comes_while_the_engine_runs_is_answered_beside_it() -> None:
    engine, beside = pair()
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        answers = await asyncio.gather(*(batcher.submit(image(value), 0.0, None) for value in (1, 2)))
        assert [label(answer) for answer in answers] == [1, 2]
        assert not first.done()
        assert not batcher.idle.is_set()
    assert (engine.batches, beside.batches) == ([[99]], [[1, 2]])


async def test_an_idle_engine_is_never_passed_over() -> None:
    engine, beside = pair()
    async with running(engine) as batcher:
        for value in range(5):
            await batcher.submit(image(value), 0.0, None)
            await batcher.idle.wait()
        first = await busy(engine, batcher)
        last = batcher.submit(image(7), 0.0, None)
        await last
        engine.release()
        await first
        await batcher.idle.wait()
        await batcher.submit(image(8), 0.0, None)
    assert engine.batches == [[0], [1], [2], [3], [4], [99], [8]]
    assert beside.batches == [[7]]


async def test_both_take_their_next_batch_while_the_loop_is_busy() -> None:
    engine, beside = pair()
    async with running(engine, max_batch_size=1) as batcher:
        first = await busy(engine, batcher)
        second = await busy(beside, batcher)
        others = [batcher.submit(image(value), 0.0, None) for value in range(4)]
        entered = threading.Semaphore(0)
        engine.on_batch = beside.on_batch = entered.release
        engine.release()
        beside.release()
        for _ in others:
            assert entered.acquire(timeout=10), "one waited for the loop, which waits here"
        await asyncio.gather(first, second, *others)
    assert sorted(sum(engine.batches + beside.batches, [])) == [0, 1, 2, 3, 99, 99]


async def test_each_run_is_charged_its_share_of_the_time() -> None:
    (engine, beside), clock, stats, busy_s = pair(), FakeClock(), list[BatchStats](), list[float]()
    async with running(engine, clock=clock, on_batch=stats.append, on_busy=busy_s.append) as batcher:
        first = await busy(engine, batcher)
        clock.advance(1)
        second = await busy(beside, batcher)
        clock.advance(2)
        beside.release()
        await second
        clock.advance(4)
        engine.release()
        await first
        await batcher.idle.wait()
        assert [one.inference_s for one in stats] == [2, 7]
        assert sum(busy_s) == 7
        # Two images of this size are predicted to take what those two took: 1 and 6 seconds, the later one counts more.
        assert batcher.work.run_s(28, 0.0, 1) == pytest.approx(3.5, abs=0.2)


async def test_what_both_have_yet_to_do_counts_as_pending_work() -> None:
    (engine, beside), clock = pair(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        engine.on_batch = lambda: clock.advance(2)  # the first batch, which is how the cost is known
        await batcher.submit(image(0), 0.0, None)
        await batcher.idle.wait()
        engine.on_batch = lambda: None
        await busy(engine, batcher)
        await busy(beside, batcher)
        assert batcher.work.pending_work_s == pytest.approx(4)
        clock.advance(1)  # half of it for each
        assert batcher.work.pending_work_s == pytest.approx(3)
        clock.advance(10)
        assert batcher.work.pending_work_s == 0


async def test_what_comes_is_predicted_to_begin_beside_what_runs() -> None:
    (engine, beside), clock = pair(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        engine.on_batch = lambda: clock.advance(2)
        await batcher.submit(image(0), 0.0, None)
        await batcher.idle.wait()
        engine.on_batch = lambda: None
        long = batcher.submit_many([image(1)] * 8, [0.0] * 8, None)  # of 16 seconds
        engine.hold()
        while batcher.work.pending_work_s != 16 or batcher.work.wait_s:
            await asyncio.sleep(0.001)
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 99) == 4  # with half of the engine
        clock.advance(15)
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 99) == 3  # and with all of it for the last second
        await busy(beside, batcher)
        assert batcher.work.wait_s == 3
        assert batcher.work.finish_s(28, 0.0, 1, clock() + 99) == 5
        engine.release()
        await asyncio.gather(*long)


async def test_only_the_run_that_nobody_waits_for_is_terminated() -> None:
    engine, beside = pair()
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        second = await busy(beside, batcher)
        second.cancel()
        while not beside.terminated:
            await asyncio.sleep(0.001)
        assert not first.done()
        engine.release()
        assert label(await first) == 99 % 4
    assert engine.terminated == 0


@pytest.mark.parametrize("hangs", [0, 1])
async def test_one_that_hangs_shows_as_a_stall_although_the_other_goes_on(hangs: int) -> None:
    both, clock = pair(), FakeClock()
    async with running(both[0], clock=clock) as batcher:
        hung = [await busy(each, batcher) for each in both][hangs]
        both[1 - hangs].release()
        for _ in range(3):
            clock.advance(10)
            await batcher.submit(image(1), 0.0, None)
        assert batcher.stalled_s == 30
        assert not hung.done()


async def test_a_thread_that_is_gone_shows_as_an_endless_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    (engine, beside), seen = pair(), list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def end() -> None:
        raise SystemExit

    beside.on_batch = end
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        lost = batcher.submit(image(1), 0.0, None)
        while batcher.stalled_s < float("inf"):
            await asyncio.sleep(0.001)
        engine.release()
        await first
    assert isinstance(lost.exception(), NotReady)
    assert [args.exc_type for args in seen] == [SystemExit]


async def test_only_the_culprit_fails_beside_as_well() -> None:
    engine, beside = pair()
    beside.poison = frozenset({2})
    async with running(engine) as batcher:
        first = await busy(engine, batcher)
        futures = batcher.submit_many([image(value) for value in range(4)], [0.0] * 4, None)
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(results[2], InferenceFailed)
        assert [label(each) for each in results if not isinstance(each, BaseException)] == [0, 1, 3]
        engine.release()
        await first


async def test_draining_waits_for_both() -> None:
    engine, beside = pair()
    async with running(engine, max_batch_size=1) as batcher:
        accepted = [await busy(engine, batcher), await busy(beside, batcher)]
        accepted += [batcher.submit(image(value), 0.0, None) for value in range(5)]
        draining = asyncio.create_task(batcher.drain(10))
        engine.release()
        while len(engine.batches) < 6:
            await asyncio.sleep(0.001)
        assert not draining.done()
        beside.release()
        assert await draining
        assert all(future.done() and future.exception() is None for future in accepted)


def test_the_engine_is_busy_for_what_it_is_told() -> None:
    metrics, name = Metrics(), fake_manifest().name
    metrics.serve(fake_manifest(), "float32")
    for seconds in (1.0, 6.0):
        metrics.on_busy(name, seconds)
    assert f'skipvit_engine_busy_seconds_total{{model="{name}"}} 7.0' in metrics.expose()[0].decode()


@pytest.mark.parametrize("ends_badly", ["terminated", "failed"])
async def test_the_engine_is_busy_whatever_comes_of_a_run(ends_badly: str) -> None:
    engine, clock = FakeEngine(poison=frozenset({99})), FakeClock()
    busy_s, stats = list[float](), list[BatchStats]()
    async with running(engine, clock=clock, on_busy=busy_s.append, on_batch=stats.append) as batcher:
        future = await busy(engine, batcher)
        clock.advance(5)
        if ends_badly == "terminated":
            future.cancel()
        else:
            engine.release()
        await asyncio.wait([future])
        await batcher.idle.wait()
    assert sum(busy_s) == 5
    assert not stats


async def test_a_run_is_ended_once_whoever_leaves_and_whatever_else_is_answered() -> None:
    (engine, beside), ended = pair(), list[bool]()
    engine.deaf = True
    async with running(engine, on_terminate=lambda: ended.append(True)) as batcher:
        engine.hold()
        futures = batcher.submit_many([image(value) for value in range(8)], [0.0] * 8, None)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        for future in futures:
            future.cancel()
        for value in range(3):
            await batcher.submit(image(value), 0.0, None)
        assert (engine.terminated, len(ended)) == (1, 1)
        engine.release()
        await batcher.idle.wait()
        again = await busy(engine, batcher)
        again.cancel()
        while engine.terminated < 2:
            await asyncio.sleep(0.001)
    assert (beside.terminated, len(ended)) == (0, 2)


async def test_an_idle_runner_keeps_no_image() -> None:
    engine, beside = pair()
    kept = list[weakref.ref[object]]()

    def seen(value: int) -> NDArray[np.uint8]:
        pixels = image(value)
        kept.append(weakref.ref(pixels))
        return pixels

    async with running(engine) as batcher:
        engine.hold()
        first = batcher.submit(seen(1), 0.0, None)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        await batcher.submit(seen(2), 0.0, None)
        engine.release()
        await first
        del first
        await batcher.idle.wait()
        while any(each() is not None for each in kept):  # the timeout of a test ends this if they stay
            await asyncio.sleep(0.001)


def test_a_share_is_all_of_the_time_for_one_and_half_for_each_of_two() -> None:
    clock = FakeClock()
    share = Share(clock)
    clock.advance(100)
    first = share.begin()
    clock.advance(1)
    second = share.begin()
    clock.advance(4)
    assert share.read() - first == 3
    assert share.end() - first == 3
    clock.advance(1)
    assert share.end() - second == 3
