"""What only a real connection and a real signal show: drain, disconnect, a hung engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal

from service.settings import Settings
from tests.fakes import CLASSES, FakeEngine
from tests.images import plain
from tests.service.live import ask, live_server, send


async def held(engine: FakeEngine) -> None:
    assert await asyncio.to_thread(engine.entered.wait, 10)


async def metric(port: int, line: str) -> float:
    _, text = await ask(port, "GET", "/metrics")
    found = [row for row in text.decode().splitlines() if row.startswith(line)]
    assert len(found) == 1, f"{line}: {found}"
    return float(found[0].split()[-1])


async def test_sigterm_fails_readiness_at_once_and_finishes_what_was_accepted() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(drain_delay_s=300)) as live:
        assert (await ask(live.port, "GET", "/readyz"))[0] == 200
        engine.hold()
        in_flight = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(3)))
        await held(engine)
        os.kill(os.getpid(), signal.SIGTERM)
        status, body = await ask(live.port, "GET", "/readyz")
        assert status == 503
        assert b"draining" in body
        assert (await ask(live.port, "GET", "/healthz"))[0] == 200
        accepted_while_draining = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(2)))
        engine.release()
        assert (await in_flight)[0] == 200
        assert (await accepted_while_draining)[0] == 200
        assert not live.task.done()  # the delay isn't over


async def test_after_the_delay_the_server_ends_without_raising_the_signal_again() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(drain_delay_s=0)) as live:
        engine.hold()
        in_flight = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(3)))
        await held(engine)
        os.kill(os.getpid(), signal.SIGTERM)
        engine.release()
        assert (await in_flight)[0] == 200
        await live.task  # a signal raised again would end this test run
        assert live.task.exception() is None


async def test_a_hung_engine_doesnt_hold_up_the_end_and_its_callers_are_told() -> None:
    engine = FakeEngine(deaf=True)
    async with live_server(engine, Settings(drain_delay_s=0, drain_timeout_s=0.05)) as live:
        engine.hold()
        hung = [asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(value))) for value in range(2)]
        await held(engine)
        os.kill(os.getpid(), signal.SIGTERM)
        for request in hung:
            status, body = await request
            assert status == 503
            assert b"stopped" in body or b"shutting down" in body
        await live.task
        assert not live.app.state.lifecycle.finished_in_time


async def test_a_client_that_leaves_takes_its_images_out_of_the_queue() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(max_batch_size=1, drain_delay_s=0)) as live:
        engine.hold()
        first = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(1)))
        await held(engine)
        _, writer = await send(live.port, "POST", "/v1/classify", plain(2))
        while await metric(live.port, "skipvit_pending_requests ") < 2:
            pass
        writer.close()
        await writer.wait_closed()
        while await metric(live.port, 'skipvit_requests_total{model="fake",outcome="cancelled"}') < 1:
            pass
        engine.release()
        assert (await first)[0] == 200
        assert (await ask(live.port, "POST", "/v1/classify", plain(3)))[0] == 200
    assert engine.batches[-2:] == [[1], [3]]


async def test_a_hung_engine_isnt_alive() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(hang_timeout_s=0.001, drain_delay_s=0)) as live:
        engine.hold()
        hung = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(1)))
        await held(engine)
        while (await ask(live.port, "GET", "/healthz"))[0] != 503:
            pass
        engine.release()
        assert (await hung)[0] == 200
        assert (await ask(live.port, "GET", "/healthz"))[0] == 200


async def test_a_deadline_passes_although_the_engine_hangs() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(default_timeout_s=0.05, drain_delay_s=0)) as live:
        engine.hold()
        status, body = await ask(live.port, "POST", "/v1/classify", plain(1))
        assert status == 504
        assert b"deadline" in body
        engine.release()
        assert await metric(live.port, 'skipvit_requests_total{model="fake",outcome="timeout"}') == 1


async def test_a_full_queue_is_429_and_says_when_to_come_back() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(max_pending_images=1, max_batch_size=1, drain_delay_s=0)) as live:
        engine.hold()
        running = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(1)))
        await held(engine)
        waiting = asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(2)))
        while await metric(live.port, "skipvit_pending_requests ") < 2:
            pass
        reader, writer = await send(live.port, "POST", "/v1/classify", plain(3))
        head = (await reader.read()).partition(b"\r\n\r\n")[0].lower()
        writer.close()
        await writer.wait_closed()
        assert head.startswith(b"http/1.1 429")
        assert b"retry-after: 1" in head
        engine.release()
        assert [(await running)[0], (await waiting)[0]] == [200, 200]


async def test_a_body_that_doesnt_arrive_is_504() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(default_timeout_s=0.05, drain_delay_s=0)) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 9\r\n\r\nslow")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 504")


async def test_many_clients_at_once_each_get_their_own_answer() -> None:
    engine = FakeEngine()
    async with live_server(engine, Settings(drain_delay_s=0)) as live:
        values = list(range(40))
        answers = await asyncio.gather(*(ask(live.port, "POST", "/v1/classify", plain(value)) for value in values))
    for value, (status, body) in zip(values, answers, strict=True):
        assert status == 200
        assert json.loads(body)["results"][0]["predictions"][0]["index"] == value % CLASSES


async def test_whatever_can_be_got_has_its_head_too() -> None:
    async with live_server(FakeEngine(), Settings()) as live:
        for path in ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models", "/v2/models/fake"):
            assert await ask(live.port, "HEAD", path) == (200, b""), path
        assert (await ask(live.port, "HEAD", "/absent"))[0] == 404
        assert (await ask(live.port, "HEAD", "/v1/classify"))[0] == 405
