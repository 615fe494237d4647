"""OpenTelemetry traces: one span a request with the spans decode, queue and inference in it.

Nothing is timed here: spans are made, once a request has ended, from the durations that its answer tells. A caller's
`traceparent` is continued. Where they go, how many are kept and what the service is called is said by the standard
variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` and so on. The library is imported
only if tracing is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from service.account import Account
from service.errors import SettingsError
from service.request_context import Ended
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_LAST_SPANS_S = 2.0
_MISSING = "SKIPVIT_TRACING: OpenTelemetry isn't installed; `pip install 'skipvit[otel]'`"


def load_tracer(settings: Settings) -> Tracer | None:
    """What sends traces; None if the settings don't ask for it. SettingsError if the extra isn't installed."""
    if not settings.tracing:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(_MISSING) from error
    return Tracer(BatchSpanProcessor(OTLPSpanExporter()))


class Tracer:
    """Makes spans of requests that have ended and gives them to a processor."""

    def __init__(self, processor: SpanProcessor, epoch_ns: Callable[[], int] = time.time_ns) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = Resource({SERVICE_NAME: "skipvit"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("skipvit")
        self._propagator = TraceContextTextMapPropagator()
        self._epoch_ns = epoch_ns

    def close(self) -> None:
        """Send what is left, and wait a moment for it: a collector that doesn't answer holds up nothing for long."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_S)

    def record(self, state: dict[str, Any], ended: Ended) -> None:
        """Make a request's spans; leaves its `trace_id` in `state` for the log."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        end_ns = self._epoch_ns()
        start_ns = end_ns - round(ended.duration_s * 1e9)
        span = self._tracer.start_span(
            f"{ended.method} {ended.route}" if ended.route else ended.method,  # raw paths would be names without end
            context=self._propagator.extract(ended.headers),
            kind=SpanKind.SERVER,
            start_time=start_ns,
            attributes=_attributes(state, ended),
        )
        if ended.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        within = set_span_in_context(span)
        for name, phase_start_ns, phase_end_ns in _phases(state, start_ns):
            phase = self._tracer.start_span(name, context=within, start_time=phase_start_ns)
            phase.end(phase_end_ns)
        span.end(end_ns)
        state["trace_id"] = f"{span.get_span_context().trace_id:032x}"


def _attributes(state: dict[str, Any], ended: Ended) -> dict[str, str | int | float | bool]:
    attributes: dict[str, str | int | float | bool] = {
        "http.request.method": ended.method,
        "url.path": ended.path,
        "http.response.status_code": ended.status,
        "skipvit.request_id": ended.request_id,
    }
    if ended.route is not None:
        attributes["http.route"] = ended.route
    for name in ("model", "outcome"):
        if name in state:
            attributes[f"skipvit.{name}"] = state[name]
    if isinstance(account := state.get("account"), Account):
        attributes |= {
            "skipvit.threshold": account.threshold,
            "skipvit.size_px": account.size_px,
            "skipvit.images": account.images,
            "skipvit.cached": account.cached,
            "skipvit.degraded": account.degraded,
            "skipvit.batch_size": account.batch_size,
            "skipvit.macs_ratio": account.macs_ratio,
        }
    return attributes


def _phases(state: dict[str, Any], start_ns: int) -> Iterator[tuple[str, int, int]]:
    """Name, start and end of each phase; they follow one another around the moment of admission."""
    account = state.get("account")
    if not isinstance(account, Account) or "admitted_s" not in state:
        return
    admitted_ns = start_ns + round((state["admitted_s"] - state["started_s"]) * 1e9)
    queued_ns = admitted_ns + round(account.queue_s * 1e9)
    yield "decode", admitted_ns - round(account.decode_s * 1e9), admitted_ns
    yield "queue", admitted_ns, queued_ns
    yield "inference", queued_ns, queued_ns + round(account.inference_s * 1e9)
