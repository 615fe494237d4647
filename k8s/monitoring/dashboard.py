"""Write the Grafana dashboard, `skipvit.json`, beside this file: `python3 k8s/monitoring/dashboard.py`.

Panels are rows of title, unit and queries; everything else that Grafana wants is the same for all and stands here once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("skipvit.json")
SELECTOR = 'namespace="$namespace"'
_COLUMNS, _HEIGHT = 24, 8
_PHASES = ("request", "decode", "queue", "inference")


class Panel(NamedTuple):
    """A time series panel: `queries` are (legend, PromQL); `warn` draws a line where something begins."""

    title: str
    unit: str
    queries: list[tuple[str, str]]
    about: str
    warn: dict[str, float] = {}


def _rate(metric: str, by: str = "", labels: str = "") -> str:
    where = f"{SELECTOR},{labels}" if labels else SELECTOR
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}[$__rate_interval]))"


def _mean(histogram: str) -> str:
    return f"{_rate(f'{histogram}_sum')} / {_rate(f'{histogram}_count')}"


def _quantile(quantile: float, histogram: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{histogram}_bucket', 'le')})"


def _phases(quantile: float) -> list[tuple[str, str]]:
    return [(phase, _quantile(quantile, f"skipvit_{phase}_duration_seconds")) for phase in _PHASES]


REFUSED = _rate("skipvit_requests_total", labels='outcome="overloaded"')

ROWS: dict[str, list[Panel]] = {
    "Traffic": [
        Panel(
            "Requests by outcome",
            "reqps",
            [("{{outcome}}", _rate("skipvit_requests_total", "outcome"))],
            "Finished requests. `overloaded` are 429, `timeout` 504, `error` is our fault.",
        ),
        Panel(
            "Requests by pod and outcome",
            "reqps",
            [("{{pod}} {{outcome}}", f"{_rate('skipvit_requests_total', 'pod,outcome')} > 0")],
            "One bad pod stands out here: its errors, timeouts or refusals, or its share of the traffic.",
        ),
        Panel(
            "Degraded and refused",
            "percentunit",
            [
                ("degraded", f"{_rate('skipvit_degraded_requests_total')} / {_rate('skipvit_requests_total')}"),
                ("refused", f"{REFUSED} / {_rate('skipvit_requests_total')}"),
            ],
            "Share of requests that got less compute than they asked for, and that got none.",
        ),
        Panel(
            "Cache",
            "reqps",
            [("{{found}}", _rate("skipvit_cache_requests_total", "found"))],
            "Answers from the cache, joined to a running request, or computed.",
        ),
    ],
    "Latency": [
        Panel("Median by phase", "s", _phases(0.5), "decode, then queue, then inference; `request` is all of it."),
        Panel("p99 by phase", "s", _phases(0.99), "decode, then queue, then inference; `request` is all of it."),
    ],
    "Batches": [
        Panel(
            "Images in a batch",
            "short",
            [("mean", _mean("skipvit_batch_size")), ("p99", _quantile(0.99, "skipvit_batch_size"))],
            "Grows with load: nobody waits for company, a batch is what came while the last one ran.",
        ),
        Panel(
            "Batches by reason",
            "ops",
            [("{{reason}}", _rate("skipvit_batches_total", "reason"))],
            "Why a batch started: `idle` engine, `busy` until now, `full`, `retry` of a row of a failed batch.",
        ),
        Panel(
            "Work, actual / predicted",
            "percentunit",
            [(f"p{100 * q:.0f}", _quantile(q, "skipvit_work_prediction_error_ratio")) for q in (0.1, 0.5, 0.9)],
            "Around 100 % the queue's limits mean what they say.",
        ),
    ],
    "Adaptive compute": [
        Panel(
            "Skip share by layer",
            "percentunit",
            [
                (
                    "layer {{layer}}",
                    f"{_rate('skipvit_skipped_patches_total', 'layer')} / {_rate('skipvit_patches_total', 'layer')}",
                )
            ],
            "Share of patches that idle in each layer.",
        ),
        Panel(
            "MACs saved",
            "percentunit",
            [("mean", f"1 - {_mean('skipvit_macs_ratio')}")],
            "Against the dense model at full size, smaller input sizes included.",
        ),
        Panel(
            "Threshold and skipped patches",
            "short",
            [
                ("threshold, mean", _mean("skipvit_effective_threshold")),
                ("skipped patches, mean", _mean("skipvit_skipped_patches")),
            ],
            "What requests ran with, and what it made them skip: mean over gated layers.",
        ),
    ],
    "Degrade first, scale second, shed last": [
        Panel(
            "Degradation level",
            "percentunit",
            [("{{pod}}", f"skipvit_degradation_level{{{SELECTOR}}}")],
            "0: everybody gets what they ask for. 1: everybody gets the least that is allowed.",
        ),
        Panel(
            "Pending work a pod",
            "s",
            [
                ("{{pod}}", f"skipvit_pending_work_seconds{{{SELECTOR}}}"),
                (
                    "mean, as the autoscaler sees it",
                    f"avg(avg_over_time(skipvit_pending_work_seconds{{{SELECTOR}}}[1m]))",
                ),
            ],
            "Seconds of accepted work. Lines: where compute is cut, pods are added, requests are refused.",
            {"degrade": 0.1, "scale": 0.4, "shed": 2.0},
        ),
        Panel(
            "Pods and pending images",
            "short",
            [
                ("pods", f"count(skipvit_pending_requests{{{SELECTOR}}})"),
                ("pending images", f"sum(skipvit_pending_requests{{{SELECTOR}}})"),
            ],
            "Images accepted and not yet answered.",
        ),
    ],
    "Accuracy guard": [
        Panel(
            "Agreement with full compute",
            "percentunit",
            [("{{model}} {{pod}}", f"skipvit_top1_agreement{{{SELECTOR}}}")],
            "Share of sampled answers whose first label is the one that full compute gives.",
            {"alert": 0.85},
        ),
        Panel(
            "Re-checked answers",
            "reqps",
            [("agreed: {{agreed}}", _rate("skipvit_guard_samples_total", "agreed"))],
            "The guard uses idle time, so there are few under load.",
        ),
        Panel(
            "Versions",
            "short",
            [("{{model}} {{version}}", f"count by (model, version) (skipvit_model_info{{{SELECTOR}}})")],
            "Pods by the model version that they serve.",
        ),
    ],
    "Before the queue": [
        Panel(
            "Decoding busy",
            "percentunit",
            [("{{pod}}", _rate("skipvit_decode_busy_seconds_total", "pod"))],
            "Share of the decoding threads' time that images take; the autoscaler's third signal.",
            {"scale": 0.7},
        ),
        Panel(
            "Connections",
            "short",
            [
                ("{{pod}}", f"skipvit_connections{{{SELECTOR}}}"),
                ("refused a second: {{reason}}", _rate("skipvit_refused_connections_total", "reason")),
            ],
            "Open ones of each pod, and those that were ended without an answer of a route.",
        ),
        Panel(
            "Waiting to be decoded or received",
            "short",
            [
                ("{{pod}}: images to decode", f"skipvit_pending_decodes{{{SELECTOR}}}"),
                ("{{pod}}: MB of bodies", f"skipvit_body_bytes{{{SELECTOR}}} / 1e6"),
            ],
            "What waits to be decoded or received; either can refuse with 429 while the engine is idle.",
        ),
    ],
    "Resources": [
        Panel(
            "Engine busy",
            "percentunit",
            [("{{pod}}", _rate("skipvit_engine_busy_seconds_total", "pod"))],
            "Share of time in which a batch runs; the autoscaler's second signal.",
            {"scale": 0.7},
        ),
        Panel(
            "CPU", "short", [("{{pod}}", _rate("process_cpu_seconds_total", "pod", 'job="skipvit"'))], "CPUs in use."
        ),
        Panel(
            "Memory",
            "bytes",
            [
                ("{{pod}}", f'process_resident_memory_bytes{{{SELECTOR},job="skipvit"}}'),
                ("cache", f"sum(skipvit_cache_bytes{{{SELECTOR}}})"),
            ],
            "Resident memory of each process, and all response caches.",
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for name, row in ROWS.items():
        title = {"id": len(panels) + 1, "type": "row", "title": name, "collapsed": False, "panels": []}
        panels.append(title | {"gridPos": _at(0, y, _COLUMNS, 1)})
        width = _COLUMNS // len(row)
        for index, panel in enumerate(row):
            panels.append({"id": len(panels) + 1, "gridPos": _at(index * width, y + 1, width, _HEIGHT), **_draw(panel)})
        y += 1 + _HEIGHT
    return {
        "uid": "skipvit",
        "title": "skipvit",
        "tags": ["skipvit"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _draw(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": "orange", "value": value} for value in panel.warn.values())]
    custom: dict[str, Any] = {"fillOpacity": 10, "lineWidth": 1, "showPoints": "never"}
    custom["thresholdsStyle"] = {"mode": "line" if panel.warn else "off"}
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "custom": custom,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend}
            for index, (legend, expr) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "namespace",
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "$datasource"},
            "query": {"query": "label_values(skipvit_model_info, namespace)", "refId": "namespace"},
            "refresh": 2,
        },
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
