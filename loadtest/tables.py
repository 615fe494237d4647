"""PURE: summaries as rows for a person: plain text, CSV and HTML from the same columns."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from typing import Any

Row = dict[str, str]


def row(name: str, summary: dict[str, Any]) -> Row:
    """One run in words and numbers."""
    latency, phases = summary["latency_s"], summary["phases"] or {}
    half = {name: phases.get(name, {}).get("p50") for name in ("queue", "inference", "outside")}
    return {
        "run": name,
        "offered/s": _number(summary["offered_rps"], 1),
        "answered/s": _number(summary["throughput_rps"], 1),
        "p50 ms": _ms(latency["p50"]),
        "p90 ms": _ms(latency["p90"]),
        "p95 ms": _ms(latency["p95"]),
        "p99 ms": _ms(latency["p99"]),
        "max ms": _ms(latency["max"]),
        "queue ms": _ms(half["queue"]),  # medians; the server's own word
        "inference ms": _ms(half["inference"]),
        "outside ms": _ms(half["outside"]),  # the caller's time that the server doesn't account for
        f"in {1e3 * summary['slo_s']:.0f} ms": _percent(summary["goodput_ratio"]),
        "top-1": _share(summary["top1"]),
        "top-5": _percent((summary["top5"] or {}).get("value")),
        "MACs": _percent(summary["macs_ratio"]),
        "skipped": _percent(summary["skipped_ratio"]),
        "degraded": _percent(summary["degraded_ratio"]),
        "refused": _percent(summary["refused_ratio"]),
        "valid": "yes" if summary["lag"]["valid"] else "NO",
    }


def text(rows: Sequence[Row]) -> str:
    """Aligned columns."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) if name == names[0] else name.rjust(widths[name]) for name in names)]
    for item in rows:
        cells = [
            item[name].ljust(widths[name]) if name == names[0] else item[name].rjust(widths[name]) for name in names
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def as_csv(rows: Sequence[Row]) -> str:
    """The same with commas."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_html(rows: Sequence[Row]) -> str:
    """The same as a table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in item.values()) + "</tr>" for item in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def details(summary: dict[str, Any]) -> str:
    """What a row doesn't show: the generator's lag, the server's phases, what went wrong."""
    lag, lines = summary["lag"], []
    if lag["ratio"] is not None:
        verdict = "valid" if lag["valid"] else "INVALID, the generator was late: its machine is too busy"
        lines.append(
            f"send lag p99 {_ms(lag['p99_s'], 2)} ms, {_percent(lag['ratio'], 2)} of the p99 latency: {verdict}"
        )
    if phases := summary["phases"]:
        parts = [
            f"{name} {_ms(phases[name]['p50'])}/{_ms(phases[name]['p99'])}" for name in ("decode", "queue", "inference")
        ]
        lines.append(
            f"server p50/p99 ms: {', '.join(parts)}; outside the server {_ms(phases['outside']['p50'])}/"
            f"{_ms(phases['outside']['p99'])}; overhead {_percent(phases['overhead_ratio'])} of the latency"
        )
    lines += [f"{count} x {what}" for what, count in summary["errors"].items()]
    return "\n".join(lines)


def _ms(seconds: float | None, digits: int = 1) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _share(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    half = (value["high"] - value["low"]) / 2
    return f"{100 * value['value']:.1f} ±{100 * half:.1f} %"
