"""Prometheus metrics: the only file that imports `prometheus_client`. It records what others measured.

Labels are bounded: a model's name, an outcome, a layer, a reason. Never a threshold, an id or a path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.artifact import Manifest
from service.batch import BatchStats
from service.results import Receipt

_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PATCHES = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_SHARES = tuple(step / 10 for step in range(11))
_ERROR_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_RATIOS = (*_SHARES[1:], 1.1, 1.25)
_INFO = ("model", "version", "architecture", "attention", "precision")

OUTCOMES = ("ok", "invalid", "overloaded", "timeout", "cancelled", "error")
REASONS = ("idle", "busy", "full", "cost", "retry")
REFUSALS = ("limit", "hard_limit", "silent", "timeout", "malformed")


class Metrics:
    """Every metric of one application, in its own registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = CollectorRegistry() if registry is None else registry
        self._served: dict[tuple[str, str], tuple[str, ...]] = {}  # (model, version) -> its info's labels
        # The histogram `skipvit_skipped_patches` and the counter `skipvit_skipped_patches_total` are two families in
        # Prometheus's text format but one name in OpenMetrics, which the client library's registry enforces. So
        # counters have a registry of their own and only the text format is spoken.
        self._counters = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"skipvit_{name}", text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: Sequence[str]) -> Counter:
            return Counter(f"skipvit_{name}", text, labels, registry=self._counters)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"skipvit_{name}", text, labels, registry=registry)

        self._requests = counter("requests_total", "Classification requests by outcome.", ("model", "outcome"))
        self._request_s = histogram("request_duration_seconds", "From first byte to last byte of the answer.", _SECONDS)
        self._decode_s = histogram("decode_duration_seconds", "Decoding and resizing of a request's images.", _SECONDS)
        self._queue_s = histogram("queue_duration_seconds", "Wait from admission to the start of the batch.", _SECONDS)
        self._inference_s = histogram("inference_duration_seconds", "One run of the engine.", _SECONDS)
        self._batch_size = histogram("batch_size", "Images in one run of the engine.", _SIZES)
        self._skipped = histogram("skipped_patches", "Patches skipped in a request, mean over gated layers.", _PATCHES)
        self._macs_ratio = histogram("macs_ratio", "MACs spent, as a share of the dense model at full size.", _RATIOS)
        self._prediction_error = histogram(
            "work_prediction_error_ratio", "Actual over predicted seconds of a run of the engine.", _ERROR_RATIOS
        )
        self._threshold = histogram("effective_threshold", "Score threshold a request ran with.", _SHARES)
        self._layers = _LayerCounts()
        self._counters.register(self._layers)
        self._degraded = counter("degraded_requests_total", "Requests answered with less than asked.", ("model",))
        self._second_looks = counter("second_looks_total", "Images looked at again at a larger size.", ("model",))
        self._terminated = counter("terminated_batches_total", "Runs ended because nobody waited.", ("model",))
        self._samples = counter("guard_samples_total", "Answers computed again at full compute.", ("model", "agreed"))
        self._cache_requests = counter("cache_requests_total", "Images looked up in the cache.", ("model", "found"))
        self._batches = counter("batches_total", "Runs of the engine by why they left.", ("model", "reason"))
        self._busy_s = counter("engine_busy_seconds_total", "Seconds in which the engine ran anything.", ("model",))
        self._decode_busy_s = counter(
            "decode_busy_seconds_total", "Seconds that threads decoded images, over the number of these threads.", ()
        )
        self._refused = counter("refused_connections_total", "Connections ended without a route's answer.", ("reason",))
        for reason in REFUSALS:
            self._refused.labels(reason)
        self._keys = counter("api_key_requests_total", "Requests by the name of their API key.", ("key",))
        self._connections = gauge("connections", "Connections that are open.")
        self._decoding = gauge("pending_decodes", "Images received and not yet decoded.")
        self._bodies = gauge("body_bytes", "Bytes of bodies being received that count against their common limit.")
        self._pending = gauge("pending_requests", "Images accepted and not yet answered.")
        self._pending_s = gauge("pending_work_seconds", "Seconds of work that pending images stand for.")
        self._degradation = gauge(
            "degradation_level", "How far load has lowered compute: 0 not at all, 1 to the minimum."
        )
        self._agreement = gauge("top1_agreement", "Share of the guard's last samples that agree.", ("model",))
        self._cache_bytes = gauge("cache_bytes", "Bytes of cached answers.", ("model",))
        self._info = gauge("model_info", "The served model.", _INFO)

    def watch(
        self,
        *,
        pending: Callable[[], int],
        pending_work_s: Callable[[], float],
        degradation: Callable[[], float],
        decoding: Callable[[], int],
        body_bytes: Callable[[], int],
    ) -> None:
        """Ask these at every scrape."""
        self._degradation.set_function(degradation)
        self._pending.set_function(pending)
        self._pending_s.set_function(pending_work_s)
        self._decoding.set_function(decoding)
        self._bodies.set_function(body_bytes)

    def serve(self, manifest: Manifest, precision: str) -> None:
        """Begin to report on a model; its counters start at 0, so that the first event shows in a rate."""
        name = manifest.name
        info = (name, manifest.version, manifest.architecture, manifest.attention, precision)
        self._served[name, manifest.version] = info
        self._info.labels(*info).set(1)
        for outcome in OUTCOMES:
            self._requests.labels(name, outcome)
        self._agreement.labels(name).set(math.nan)  # until the guard has judged: below no threshold, above none
        self._cache_bytes.labels(name).set(0)
        self._degraded.labels(name)
        self._second_looks.labels(name)
        for agreed in ("true", "false"):
            self._samples.labels(name, agreed)
        for found in ("hit", "coalesced", "miss"):
            self._cache_requests.labels(name, found)
        self._terminated.labels(name)
        self._busy_s.labels(name)
        for reason in REASONS:
            self._batches.labels(name, reason)
        self._layers.begin(name, manifest.layers)

    def forget(self, manifest: Manifest) -> None:
        """A model or a version of it is served no more; its counters stay."""
        self._info.remove(*self._served.pop((manifest.name, manifest.version)))
        for gauge in (self._agreement, self._cache_bytes):
            gauge.remove(manifest.name)

    def on_request(self, model: str, outcome: str, duration_s: float) -> None:
        """A classification request has ended."""
        self._requests.labels(model, outcome).inc()
        self._request_s.observe(duration_s)

    def on_connections(self, count: int) -> None:
        """So many connections are open now."""
        self._connections.set(count)

    def on_refusal(self, reason: str) -> None:
        """A connection was ended without a route's answer; `reason` is one of REFUSALS."""
        self._refused.labels(reason).inc()

    def on_decode(self, seconds: float) -> None:
        """An image took a share of the decoding threads' time."""
        self._decode_busy_s.inc(seconds)

    def on_api_key(self, name: str) -> None:
        """A request has shown the key of this name."""
        self._keys.labels(name).inc()

    def on_batch(self, model: str, stats: BatchStats) -> None:
        """The engine ran."""
        self._batches.labels(model, stats.reason).inc()
        self._batch_size.observe(stats.rows)
        if stats.prediction_error_ratio is not None:
            self._prediction_error.observe(stats.prediction_error_ratio)
        self._inference_s.observe(stats.inference_s)

    def on_busy(self, model: str, seconds: float) -> None:
        """The engine ran for so long, whatever came of it."""
        self._busy_s.labels(model).inc(seconds)

    def on_sample(self, model: str, agreed: bool, agreement: float) -> None:
        """The quality guard has judged an answer; `agreement` is the share of the last ones that agreed."""
        self._samples.labels(model, str(agreed).lower()).inc()
        if self._is_served(model):
            self._agreement.labels(model).set(agreement)

    def on_find(self, model: str, found: str) -> None:
        """The cache was asked for an image."""
        self._cache_requests.labels(model, found).inc()

    def on_store(self, model: str, cache_bytes: int) -> None:
        """The cache holds so many bytes now."""
        if self._is_served(model):
            self._cache_bytes.labels(model).set(cache_bytes)

    def _is_served(self, model: str) -> bool:
        """And not only finishing what had chosen it before it was unloaded."""
        return any(name == model for name, _ in self._served)

    def on_terminate(self, model: str) -> None:
        """A run of the engine was ended because everybody who waited for it had left."""
        self._terminated.labels(model).inc()

    def on_answer(
        self,
        model: str,
        receipts: Sequence[Receipt],
        *,
        threshold: float,
        decode_s: float,
        queue_s: float,
        degraded: bool = False,
        second_looks: int = 0,
    ) -> None:
        """A request was answered; histograms get the mean over the images that were computed."""
        if degraded:
            self._degraded.labels(model).inc()
        self._second_looks.labels(model).inc(second_looks)
        self._decode_s.observe(decode_s)
        self._queue_s.observe(queue_s)
        self._threshold.observe(threshold)
        if not receipts:
            return
        self._skipped.observe(sum(receipt.skipped_mean for receipt in receipts) / len(receipts))
        self._macs_ratio.observe(sum(receipt.macs_ratio for receipt in receipts) / len(receipts))
        for receipt in receipts:
            self._layers.add(model, receipt)

    def expose(self) -> tuple[bytes, str]:
        """Everything in Prometheus's text format, and its content type."""
        return generate_latest(_Families(self.registry, self._counters)), _TEXT_FORMAT


class _LayerCounts(Collector):
    """Patches of every layer of every model: summed as integers, and made counters of when they are asked for.

    Counters of the library's would be two for each layer of each request, with a lock each.
    """

    def __init__(self) -> None:
        self._entered: dict[str, list[int]] = {}  # model -> patches that entered each layer
        self._skipped: dict[str, list[int]] = {}

    def begin(self, model: str, layers: int) -> None:
        """Count a model's layers, from 0 unless they were counted before: a counter never falls."""
        for counts in (self._entered, self._skipped):
            known = counts.setdefault(model, [])
            known += [0] * (layers - len(known))

    def add(self, model: str, receipt: Receipt) -> None:
        """Count an image's patches."""
        entered, skipped = self._entered[model], self._skipped[model]
        for layer, count in enumerate(receipt.skipped_per_layer):
            entered[layer] += receipt.patches
            skipped[layer] += count

    def collect(self) -> Iterable[Metric]:
        for name, text, counts in (
            ("patches", "Patches that entered a layer.", self._entered),
            ("skipped_patches", "Patches a layer skipped.", self._skipped),
        ):
            family = CounterMetricFamily(f"skipvit_{name}", text, labels=("model", "layer"))
            for model, layers in counts.items():
                for layer, count in enumerate(layers):
                    family.add_metric((model, str(layer)), count)
            yield family


class _Families(Collector):
    """Several registries as one, without the `_created` series that nobody asks for and that would collide."""

    def __init__(self, *registries: CollectorRegistry) -> None:
        self._registries = registries

    def collect(self) -> Iterable[Metric]:
        for registry in self._registries:
            for family in registry.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family
