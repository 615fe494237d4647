"""What a real OTLP receiver gets, and that nothing is loaded where nobody asked for traces."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from service.errors import SettingsError
from service.settings import Settings
from service.tracing import load_tracer
from tests.fakes import FakeEngine
from tests.images import plain
from tests.service.live import live_server
from tests.service.process import FAKE, running

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMEOUT_S = 30


class Receiver:
    """An OTLP/HTTP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.received: list[ResourceSpans] = []
        self.port = 0
        self._news = asyncio.Event()
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    @property
    def spans(self) -> list[Span]:
        return [span for each in self.received for scope in each.scope_spans for span in scope.spans]

    async def until(self, found: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not found():
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*(task for task in self._open if task is not None))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[asyncio.current_task()] = writer
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                request = ExportTraceServiceRequest.FromString(await reader.readexactly(length))
                self.received.extend(request.resource_spans)
                self._news.set()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:  # the exporter has closed the connection, or the test has
            writer.close()


@asynccontextmanager
async def receiving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield receiver
    server.close()
    await receiver.close()


async def classify(port: int, *headers: str, body: bytes = plain(3)) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [
        "POST /v1/classify?threshold=0.25 HTTP/1.1",
        "Host: test",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join([*head, *headers, "", ""]).encode() + body)
    answer = await reader.read()
    writer.close()
    document: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return document


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


async def test_a_request_arrives_as_a_span_with_its_phases_in_the_callers_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with receiving(monkeypatch) as receiver:
        started_ns = time.time_ns()
        async with live_server(FakeEngine(), Settings(tracing=True, drain_delay_s=0)) as live:
            answer = await classify(live.port, f"traceparent: 00-{TRACE}-{PARENT}-01", "X-Request-Id: r1")
            await receiver.until(lambda: len(receiver.spans) == 4)
    resource = {each.key: each.value.string_value for each in receiver.received[0].resource.attributes}
    assert resource["service.name"] == "skipvit"
    spans = {span.name: span for span in receiver.spans}
    request = spans.pop("POST /v1/classify")
    assert request.kind == Span.SPAN_KIND_SERVER
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(request)
    assert told["http.response.status_code"] == 200
    assert told["skipvit.request_id"] == "r1"
    assert told["skipvit.model"] == "fake"
    assert told["skipvit.threshold"] == 0.25
    assert list(spans) and set(spans) == {"decode", "queue", "inference"}  # noqa: PT018
    for name, span in spans.items():
        assert (span.trace_id.hex(), span.parent_span_id) == (TRACE, request.span_id)
        duration_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert duration_ms == pytest.approx(answer["timing_ms"][name], abs=0.01)
    order = [
        request.start_time_unix_nano,
        *(spans[name].start_time_unix_nano for name in ("decode", "queue", "inference")),
    ]
    assert started_ns < order[0]
    assert order == sorted(order)
    assert spans["inference"].end_time_unix_nano <= request.end_time_unix_nano <= time.time_ns()


async def test_a_refused_request_is_a_span_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        receiving(monkeypatch) as receiver,
        live_server(FakeEngine(poison=frozenset({66})), Settings(tracing=True, drain_delay_s=0)) as live,
    ):
        await classify(live.port, body=b"no image")
        await classify(live.port, body=plain(66))
        await receiver.until(lambda: len(receiver.spans) == 2)
        refused, failed = receiver.spans
        assert attributes(refused)["skipvit.outcome"] == "invalid"
        assert refused.status.code == Status.STATUS_CODE_UNSET  # the client's fault
        assert failed.status.code == Status.STATUS_CODE_ERROR
        assert refused.trace_id != failed.trace_id


async def test_the_callers_wish_not_to_be_traced_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        receiving(monkeypatch) as receiver,
        live_server(FakeEngine(), Settings(tracing=True, drain_delay_s=0)) as live,
    ):
        await classify(live.port, f"traceparent: 00-{TRACE}-{PARENT}-00")
        await classify(live.port)
        await receiver.until(lambda: len(receiver.spans) >= 4)
        assert TRACE not in {span.trace_id.hex() for span in receiver.spans}


def test_nothing_is_loaded_where_nobody_asked() -> None:
    code = (
        "import sys\n"
        "from service.app import create_app\n"
        "create_app()\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_without_the_extra_it_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=r"pip install 'skipvit\[otel\]'"):
        load_tracer(Settings(tracing=True))


def test_a_dead_collector_holds_up_neither_requests_nor_the_end() -> None:
    environment = {"SKIPVIT_PORT": "0", "SKIPVIT_TRACING": "true", "SKIPVIT_DRAIN_DELAY_S": "0"}
    environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    with running(FAKE, environment) as server:
        asyncio.run(classify(server.port))
        began_s = time.monotonic()
        code, _ = server.stop()
        assert code == 0
        assert time.monotonic() - began_s < 6  # OpenTelemetry itself would try for ten seconds
