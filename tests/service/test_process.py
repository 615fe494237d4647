"""What only a process of its own shows: the end under load, by one signal, by two, by none that can be caught."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections import Counter
from contextlib import closing, suppress
from typing import NamedTuple

import pytest
from PIL import Image

from service.server import within_open_files
from service.settings import Settings
from tests.images import encode, plain
from tests.service.live import ask, send
from tests.service.process import FAKE, Server, running

LATE_S = 0.3  # before the port closes: who sends later may find it closed


class Sent(NamedTuple):
    """One request and what became of it; status 0 is no answer."""

    at_s: float
    status: int


async def stop_when_asked(server: Server) -> int:
    return (await asyncio.to_thread(server.stop))[0]


async def one_by_one(port: int, ended: asyncio.Event, sent: list[Sent]) -> None:
    """Ask again and again, on a new connection each time."""
    while not ended.is_set():
        at_s = time.monotonic()
        try:
            status, _ = await ask(port, "POST", "/v1/classify", plain(3))
        except (ConnectionError, IndexError):  # IndexError: it ended before it began
            status = 0
        sent.append(Sent(at_s, status))


async def in_a_row(port: int, ended: asyncio.Event, sent: list[Sent]) -> None:
    """Ask again and again on one connection; on a new one when told that the old one closes."""
    body = plain(3)
    request = b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    while not ended.is_set():
        at_s, closes = time.monotonic(), False
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                while not (closes or ended.is_set()):
                    at_s = time.monotonic()
                    writer.write(request)
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                    sent.append(Sent(at_s, int(head.split()[1])))
                    closes = b"connection: close" in head
        except (ConnectionError, asyncio.IncompleteReadError):
            sent.append(Sent(at_s, 0))


async def test_under_load_sigterm_loses_no_request() -> None:
    delay_s = 1.0
    environment = {
        "SKIPVIT_PORT": "0",
        "SKIPVIT_DRAIN_DELAY_S": str(delay_s),
        "SKIPVIT_MAX_BATCH_SIZE": "4",
        "ENGINE_MS": "50",
    }
    with running(FAKE, environment) as server:
        ended, sent = asyncio.Event(), list[Sent]()
        clients = [
            asyncio.create_task(kind(server.port, ended, sent)) for kind in (one_by_one, in_a_row) for _ in range(8)
        ]
        while len(sent) < 50:
            await asyncio.sleep(0.01)
        signal_s = time.monotonic()
        code = await asyncio.wait_for(stop_when_asked(server), 30)
        ended.set()
        await asyncio.wait_for(asyncio.gather(*clients), 30)
    assert code == 0, server.log
    assert "Traceback" not in server.log
    before = Counter(each.status for each in sent if each.at_s < signal_s)
    draining = Counter(each.status for each in sent if signal_s <= each.at_s < signal_s + delay_s - LATE_S)
    assert set(before) == {200}
    assert set(draining) == {200}
    assert draining[200] > 20
    assert {each.status for each in sent} <= {200, 503, 0}  # later: answered, refused or not accepted


async def test_a_killed_process_leaves_nothing_behind() -> None:
    with running(FAKE, {"SKIPVIT_PORT": "0", "ENGINE_MS": "60000"}) as first:
        waiting = [await send(first.port, "POST", "/v1/classify", plain(value)) for value in range(3)]
        while b"skipvit_pending_requests 3.0" not in (await ask(first.port, "GET", "/metrics"))[1]:
            await asyncio.sleep(0.01)
        first.process.kill()
        for reader, writer in waiting:
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert first.process.wait(10) == -signal.SIGKILL
        with running(FAKE, {"SKIPVIT_PORT": str(first.port)}) as second:
            assert second.port == first.port
            assert (await ask(second.port, "POST", "/v1/classify", plain(1)))[0] == 200
            assert second.stop()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    with running(FAKE, {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "60", "ENGINE_MS": "60000"}) as server:
        _, writer = await send(server.port, "POST", "/v1/classify", plain(1))
        server.process.send_signal(signal.SIGTERM)
        while (await ask(server.port, "GET", "/readyz"))[0] != 503:
            await asyncio.sleep(0.01)
        code, _ = await asyncio.to_thread(server.stop, number, 10)
        assert code == 128 + number
        writer.close()


async def test_a_thread_that_decodes_for_nobody_doesnt_hold_up_the_end() -> None:
    environment = {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "0", "DECODE_MS": "30000"}
    photo = encode(Image.new("RGB", (400, 400)), "PNG")  # too large to be decoded on the loop
    with running(FAKE, {**environment, "SKIPVIT_DEFAULT_TIMEOUT_S": "0.3"}) as server:
        assert (await ask(server.port, "POST", "/v1/classify", photo))[0] == 504
        code, log = await asyncio.to_thread(server.stop, signal.SIGTERM, 10)
    assert code == 0, log


async def test_while_it_leaves_it_asks_clients_to_connect_elsewhere() -> None:
    with running(FAKE, {"SKIPVIT_PORT": "0", "SKIPVIT_DRAIN_DELAY_S": "1"}) as server:
        request = b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head.lower()
        await reader.readexactly(len(b'{"status":"ready"}'))
        server.process.send_signal(signal.SIGTERM)
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 503 " in head:
                break
            await reader.readexactly(len(b'{"status":"ready"}'))
        assert b"connection: close" in head.lower()
        assert await asyncio.wait_for(reader.read(), 10)  # the document, then the end
        writer.close()
        assert server.process.wait(30) == 0


@pytest.mark.parametrize(
    ("soft", "hard", "set_to", "connections"),
    [
        (4096, 4096, [], 900),
        (1024, 1 << 20, [(1900, 1 << 20)], 900),
        (1024, resource.RLIM_INFINITY, [(1900, resource.RLIM_INFINITY)], 900),
        (512, 1024, [(1024, 1024)], 462),  # with 100 files for other things
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, [], 900),
    ],
)
def test_there_are_as_many_connections_as_files_may_be_open(
    soft: int, hard: int, set_to: list[tuple[int, int]], connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: made.append(limits))
    assert within_open_files(Settings(max_connections=900)).max_connections == connections
    assert made == set_to
