"""Clients that take more than they should: slow, silent, greedy, too many. On real connections."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import weakref
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from fastapi import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service import connection
from service.connection import Connection
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.images import plain
from tests.service.live import Live, ask, live_server

CHUNKED = b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: test\r\n\r\n"


def settings(**changes: Any) -> Settings:
    return Settings(drain_delay_s=0, **changes)


async def connect(live: Live) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", live.port)


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer on a connection that stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def drip(writer: asyncio.StreamWriter, byte: bytes, ended: asyncio.Event) -> None:
    """Send a byte now and then until told to stop or cut off."""
    try:
        while not ended.is_set():
            writer.write(byte)
            await writer.drain()
            await asyncio.wait({asyncio.ensure_future(ended.wait())}, timeout=0.02)
    except ConnectionError:
        pass


async def cut_off(live: Live, start: bytes, byte: bytes) -> bytes:
    """What a client reads that sends `start` and then byte by byte; the server must end it."""
    reader, writer = await connect(live)
    writer.write(start)
    ended = asyncio.Event()
    dripping = asyncio.create_task(drip(writer, byte, ended))
    try:
        async with asyncio.timeout(10):
            try:
                return await reader.read()
            except ConnectionResetError:  # it went on sending to a closed socket
                return b""
    finally:
        ended.set()
        await dripping
        writer.close()


@pytest.mark.parametrize(
    ("start", "byte"),
    [
        (b"GET / HTTP/1.1\r\nHost: test\r\nX-Slow: ", b"a"),
        (b"GET /", b"a"),
        (b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n", b"a"),
        (b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"POST /v2/models/fake/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n", b"a"),
        (b"POST /nothing HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n", b"a"),  # answered before its body
    ],
    ids=["header", "target", "body", "chunked", "infer", "refused"],
)
async def test_a_client_that_sends_byte_by_byte_is_cut_off(start: bytes, byte: bytes) -> None:
    async with live_server(FakeEngine(), settings(client_timeout_s=0.3)) as live:
        answer = await cut_off(live, start, byte)
        if answer:
            assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 404"))
            assert b"application/problem+json" in answer or b'{"error"' in answer
        assert (await ask(live.port, "GET", "/healthz"))[0] == 200


async def test_a_silent_client_is_cut_off_and_told_what_is_missing() -> None:
    async with live_server(FakeEngine(), settings(client_timeout_s=0.1)) as live:
        for start, status in (
            (b"", 0),
            (GET[:20], 408),
            (b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", 408),
        ):
            reader, writer = await connect(live)
            writer.write(start)
            answer = await reader.read()
            writer.close()
            assert int(answer.split()[1]) == status if status else not answer
            if status:
                assert b"connection: close" in answer.lower()
                assert b"didn't arrive within 0.1 s" in answer
        _, text = await ask(live.port, "GET", "/metrics")
        assert b'skipvit_requests_total{model="fake",outcome="cancelled"} 1.0' in text


async def test_the_second_request_of_a_connection_has_a_deadline_too() -> None:
    async with live_server(FakeEngine(), settings(client_timeout_s=0.2)) as live:
        for rest in (GET[:20], b"\r\n"):  # the parser swallows an empty line and would wait on
            reader, writer = await connect(live)
            writer.write(GET)
            assert (await one_answer(reader))[0] == 200
            writer.write(rest)
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()


async def ask_for_ever(writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(30):
        while True:
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n" * 20)
            await writer.drain()
            await asyncio.sleep(0)


async def test_a_client_that_takes_no_answer_is_cut_off() -> None:
    """It asks again and again and reads nothing, so that the socket's buffers fill."""
    async with live_server(FakeEngine(), settings(client_timeout_s=0.3)) as live:
        reader, writer = await connect(live)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):
            await ask_for_ever(writer)
        writer.transport.abort()
        assert (await ask(live.port, "GET", "/healthz"))[0] == 200


async def test_a_client_that_asks_once_and_takes_no_answer_is_cut_off_too() -> None:
    """Its answer fits no buffer of the system; closing would wait for it for ever."""
    engine = FakeEngine()
    async with live_server(engine, settings(client_timeout_s=0.3)) as live:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", live.port))

            @live.app.get("/large")
            async def large() -> Response:
                return Response(bytes(16 << 20))

            client.sendall(b"GET /large HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(10):
                while not live.connections:
                    await asyncio.sleep(0.01)
                for connection in live.connections:  # the least that is left counts, not only what fills a buffer
                    assert connection.transport.get_write_buffer_limits() == (0, 0)
                while live.connections:
                    await asyncio.sleep(0.01)


async def test_a_slow_but_complete_request_is_answered() -> None:
    body = plain(3)
    async with live_server(FakeEngine(), settings(client_timeout_s=5)) as live:
        reader, writer = await connect(live)
        request = b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await one_answer(reader))[0] == 200
        writer.close()


async def test_requests_in_a_row_and_in_a_pipeline_are_answered_in_order() -> None:
    async with live_server(FakeEngine(), settings()) as live:
        reader, writer = await connect(live)
        for value in (1, 2, 3):
            body = plain(value)
            writer.write(
                b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            if value == 1:
                assert (await one_answer(reader))[0] == 200
        for value in (2, 3):
            status, content = await one_answer(reader)
            assert status == 200
            assert json.loads(content)["results"][0]["predictions"][0]["index"] == value
        writer.close()


async def test_an_idle_connection_is_closed() -> None:
    async with live_server(FakeEngine(), settings(keep_alive_timeout_s=1)) as live:
        reader, writer = await connect(live)
        writer.write(GET)
        assert (await one_answer(reader))[0] == 200
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_long_header_is_431_and_a_malformed_one_400_as_problems() -> None:
    async with live_server(FakeEngine(), settings(max_header_bytes=2048)) as live:
        for start, status in (
            (GET[:-2] + b"X-Long: " + b"x" * 4096, 431),
            (GET[:-2] + b"X-Long: " + b"x" * 4096 + b"\r\n\r\n", 431),
            (b"GET\x00 nonsense\r\n\r\n", 400),
            (b"GET http://[ HTTP/1.1\r\nHost: test\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: one\r\nHost: two\r\n\r\n", 400),
        ):
            reader, writer = await connect(live)
            writer.write(start)
            code, content = await one_answer(reader)
            writer.close()
            assert code == status
            assert json.loads(content)["status"] == status
            assert json.loads(content)["detail"] != "User callback error"  # the parser's words for what we refuse


@pytest.mark.parametrize("path", [b"/nothing", b"/v1/classify"])
async def test_a_malformed_body_ends_the_connection_whether_answered_or_not(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with live_server(FakeEngine(), settings()) as live:
        reader, writer = await connect(live)
        writer.write(b"POST " + path + b" HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        if path == b"/nothing":
            assert (await one_answer(reader))[0] == 404
        writer.write(b"no length\r\n")
        rest = await asyncio.wait_for(reader.read(), 10)
        assert rest.startswith(b"HTTP/1.1 400") if path == b"/v1/classify" else rest == b""
        writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("start", [b"1;extension=", b"1\r\na\r\n0\r\nX-Trailer: "], ids=["extension", "trailer"])
async def test_what_frames_a_body_is_no_longer_than_a_header(start: bytes) -> None:
    async with live_server(FakeEngine(), settings(max_header_bytes=2048)) as live:
        answer = await cut_off(live, CHUNKED + start, b"x" * 100)
        assert answer.startswith(b"HTTP/1.1 431") or not answer


async def test_a_body_longer_than_a_header_may_be_is_taken_with_trailers_that_nobody_reads() -> None:
    body = plain(3)
    chunks = b"".join(b"4\r\n%b\r\n" % body[start : start + 4] for start in range(0, len(body) // 4 * 4, 4))
    last = body[len(body) // 4 * 4 :]
    chunks += b"%x\r\n%b\r\n" % (len(last), last) if last else b""
    trailers = b"".join(b"x-a: b\r\n" for _ in range(40))
    async with live_server(FakeEngine(), settings(max_header_bytes=1024)) as live:
        reader, writer = await connect(live)
        for _ in range(2):
            writer.write(CHUNKED)
            for start in range(0, len(chunks), 100):
                writer.write(chunks[start : start + 100])
                await writer.drain()
            writer.write(b"0\r\n" + trailers + b"\r\n")
            assert (await one_answer(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize("pieces", [1, 40])
async def test_a_client_that_offers_another_protocol_is_answered_in_this_one(pieces: int) -> None:
    """Java's own client offers HTTP/2 with its first request, whatever its body."""
    body = plain(3)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    request = b"POST /v1/classify HTTP/1.1\r\nHost: test\r\n%bContent-Length: %d\r\n\r\n%b" % (offer, len(body), body)
    async with live_server(FakeEngine(), settings()) as live:
        reader, writer = await connect(live)
        for _ in range(2):
            step = -(-len(request) // pieces)
            for start in range(0, len(request), step):
                writer.write(request[start : start + step])
                await asyncio.sleep(0.001)
            status, content = await one_answer(reader)
            assert status == 200
            assert json.loads(content)["results"][0]["predictions"][0]["index"] == 3
        writer.close()


async def test_what_is_wrong_behind_a_request_takes_nothing_from_its_answer() -> None:
    async with live_server(FakeEngine(), settings()) as live:
        reader, writer = await connect(live)
        writer.write(GET + b"nonsense\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        writer.close()


async def test_connect_is_refused_once() -> None:
    async with live_server(FakeEngine(), settings()) as live:
        reader, writer = await connect(live)
        writer.write(b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        writer.close()


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"POST /v1/classify?threshold=7 HTTP/1.0\r\n", 422),
        (b"POST /v1/classify?model=x HTTP/1.0\r\n", 404),
        (b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", 413),
    ],
)
async def test_an_answer_before_the_body_is_read_reaches_who_still_sends(start: bytes, status: int) -> None:
    """A socket that is closed with bytes unread resets the connection, and the answer is lost."""
    body = bytes(24 << 20)
    async with live_server(FakeEngine(), settings()) as live:

        def sends_all_first() -> bytes:
            with socket.create_connection(("127.0.0.1", live.port)) as client:
                client.sendall(start + b"Content-Length: %d\r\n\r\n" % len(body))
                client.sendall(body)
                return b"".join(iter(lambda: client.recv(65536), b""))

        for _ in range(3):
            answer = await asyncio.to_thread(sends_all_first)
            assert answer.startswith(b"HTTP/1.1 %d" % status)
        await gone(live)


async def test_who_is_answered_and_sends_on_for_ever_is_cut_off() -> None:
    async with live_server(FakeEngine(), settings(client_timeout_s=0.5)) as live:
        reader, writer = await connect(live)
        writer.write(b"POST /v1/classify?threshold=7 HTTP/1.0\r\nContent-Length: 9000000\r\n\r\n")
        ended = asyncio.Event()
        dripping = asyncio.create_task(drip(writer, b"x", ended))
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 422")
        await gone(live)
        ended.set()
        await dripping
        writer.close()


async def gone(live: Live) -> None:
    async with asyncio.timeout(10):
        while live.connections:
            await asyncio.sleep(0.01)


async def test_of_an_endless_pipeline_the_first_are_answered() -> None:
    async with live_server(FakeEngine(), settings()) as live:
        reader, writer = await connect(live)
        writer.write(GET * 1000)
        answers = await asyncio.wait_for(reader.read(), 10)
        assert answers.count(b"HTTP/1.1 200") == 33
        assert answers.count(b"connection: close") == 1
        writer.close()
        assert (await ask(live.port, "GET", "/healthz"))[0] == 200


class Wire(asyncio.Transport):
    """A transport that keeps each packet."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.packets.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.packets.append(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def wired(app: Any) -> tuple[Connection, Wire]:
    config = uvicorn.Config(app, log_config=None)
    config.load()
    connection, wire = Connection.limited(settings())(config, ServerState(), {}), Wire()
    connection.connection_made(wire)
    return connection, wire


async def receive(connection: Connection, request: bytes) -> None:
    connection.data_received(request)
    while connection.tasks:
        await asyncio.sleep(0)


async def packets(app: Any, request: bytes) -> list[bytes]:
    """What a connection sends for one request, by packets."""
    connection, wire = wired(app)
    await receive(connection, request)
    connection.connection_lost(None)
    return wire.packets


async def test_an_answer_is_one_packet_and_a_stream_one_for_each_piece() -> None:
    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("after the header")

    (packet,) = await packets(Response("hello"), GET)
    assert packet.startswith(b"HTTP/1.1 200 OK\r\n")
    assert packet.endswith(b"\r\n\r\nhello")
    (packet,) = await packets(Response("hello"), GET.replace(b"GET", b"HEAD"))
    assert packet.endswith(b"content-length: 5\r\n\r\n")
    first, second, last = await packets(streaming, GET)
    assert first.startswith(b"HTTP/1.1 200")
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert (second, last) == (b"3\r\ntwo\r\n", b"0\r\n\r\n")
    (packet,) = await packets(failing, GET)
    assert packet.startswith(b"HTTP/1.1 200")
    asked = await packets(echo, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
    assert asked[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert asked[1].endswith(b"\r\n\r\nhi")
    assert len(asked) == 2


async def test_a_trailer_is_no_header() -> None:
    async def names(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await Response(b",".join(name for name, _ in scope["headers"]))(scope, receive, send)

    (packet,) = await packets(names, CHUNKED + b"1\r\na\r\n0\r\nX-Api-Key: stolen\r\n\r\n")
    assert packet.endswith(b"\r\n\r\nhost,transfer-encoding")


async def test_an_answered_request_leaves_no_cycle_to_search_for() -> None:
    connection, _ = wired(Response("hello"))
    gc.disable()
    try:
        await receive(connection, GET)
        answered = weakref.ref(connection.cycle)
        await receive(connection, GET)
        assert answered() is None
    finally:
        gc.enable()
        connection.connection_lost(None)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    await Response(message["body"])(scope, receive, send)


async def test_when_it_is_crowded_the_idle_make_room() -> None:
    async with live_server(FakeEngine(), settings(max_connections=2)) as live:
        idle = [await connect(live) for _ in range(2)]
        for reader, writer in idle:
            writer.write(GET)
            assert (await one_answer(reader))[0] == 200
        assert (await ask(live.port, "GET", "/v1/models"))[0] == 200
        ended = [asyncio.create_task(reader.read(1)) for reader, _ in idle]
        done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        assert all(task.result() == b"" for task in done)
        for task in ended:
            task.cancel()
        for _, writer in idle:
            writer.close()


@pytest.mark.parametrize(("start", "answer"), [(b"", b""), (b"GET /v1", b"408")])
async def test_when_it_is_crowded_who_sends_no_header_makes_room(
    start: bytes, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HEADER_S", 0.1)
    async with live_server(FakeEngine(), settings(max_connections=2)) as live:
        late = [await connect(live) for _ in range(4)]  # so many that another wouldn't even be read from
        for _, writer in late:
            writer.write(start)
        await asyncio.sleep(0.2)  # longer than it is patient, which no event ends
        for _ in range(3):
            assert (await ask(live.port, "GET", "/v1/models"))[0] == 200
        ended = [asyncio.create_task(reader.read()) for reader, _ in late]
        done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        assert all(answer in task.result() for task in done)
        for task in ended:
            task.cancel()
        for _, writer in late:
            writer.close()


async def test_connections_and_those_refused_are_counted_and_the_log_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "_HARD_LIMIT_RATIO", 1.5)
    async with live_server(FakeEngine(), settings(max_connections=2, metrics_port=0)) as live:
        busy = [await connect(live) for _ in range(2)]
        for _, writer in busy:
            writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
            await writer.drain()
        for _ in range(2):
            assert (await ask(live.port, "GET", "/v1/models"))[0] == 503
        third = await connect(live)
        fourth = await connect(live)
        with suppress(ConnectionResetError):
            assert await fourth[0].read() == b""
        third[1].write(b"nonsense\r\n\r\n")
        assert b"400" in await third[0].read()
        async with asyncio.timeout(10):
            while b"skipvit_connections 2.0" not in (await ask(live.app.state.metrics_port, "GET", "/metrics"))[1]:
                third[1].close()
        found = (await ask(live.app.state.metrics_port, "GET", "/metrics"))[1].decode()
        reasons = {"limit": 2, "hard_limit": 1, "malformed": 1, "silent": 0, "timeout": 0}
        for reason, count in reasons.items():
            assert f'skipvit_refused_connections_total{{reason="{reason}"}} {count}.0' in found
        assert "skipvit_body_bytes 0.0" in found
        told = [record for record in caplog.records if "connections are refused" in record.getMessage()]
        assert len(told) == 1
        for _, writer in (*busy, fourth):
            writer.close()


async def test_when_nobody_is_idle_new_ones_get_503_but_probes_are_answered() -> None:
    engine = FakeEngine()
    async with live_server(engine, settings(max_connections=2, metrics_port=0)) as live:
        engine.hold()
        busy = [asyncio.create_task(ask(live.port, "POST", "/v1/classify", plain(value))) for value in range(2)]
        while b"skipvit_pending_requests 2.0" not in (await ask(live.app.state.metrics_port, "GET", "/metrics"))[1]:
            pass
        status, content = await ask(live.port, "POST", "/v1/classify", plain(9))
        assert status == 503
        assert "at once" in json.loads(content)["detail"]
        assert (await ask(live.port, "GET", "/healthz"))[0] == 200
        assert (await ask(live.port, "GET", "/readyz"))[0] == 200
        engine.release()
        assert [(await task)[0] for task in busy] == [200, 200]
        assert (await ask(live.port, "POST", "/v1/classify", plain(9)))[0] == 200


async def test_metrics_of_a_crowded_process_are_answered() -> None:
    async with live_server(FakeEngine(), settings(max_connections=2)) as live:
        busy = [await connect(live) for _ in range(2)]
        for _, writer in busy:
            writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
            await writer.drain()
        assert (await ask(live.port, "GET", "/v1/models"))[0] == 503
        status, content = await ask(live.port, "GET", "/metrics")
        assert status == 200
        assert b"skipvit_requests_total" in content
        for _, writer in busy:
            writer.close()


async def test_far_too_many_connections_arent_even_read_from() -> None:
    async with live_server(FakeEngine(), settings(max_connections=2)) as live:
        silent = [await connect(live) for _ in range(4)]
        reader, writer = await connect(live)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, each in [*silent, (reader, writer)]:
            each.close()
