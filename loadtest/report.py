"""A sweep's result as files for people: a table, a CSV, pictures and one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from loadtest import plots, tables
from loadtest.findings import held_in_words, held_rps, named, pooled, steady

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
td, th { white-space: nowrap } img { max-width: 100%; margin: 1rem 0 } .scroll { overflow-x: auto }
"""


def write(result: dict[str, Any], folder: Path) -> str:
    """Write table.csv, the PNGs and report.html into the folder; returns the table and where things are."""
    rows = [tables.row(_name(row), row["summary"]) for row in result["cells"]]
    pictures = plots.save_all(result, folder)
    (folder / "table.csv").write_text(tables.as_csv(rows))
    page = folder / "report.html"
    page.write_text(_page(result, rows, pictures))
    parts = [tables.text(rows), *_findings(result), *_warnings(result)]
    return "\n".join([*parts, f"report: {page}", *(f"picture: {file}" for file in pictures)])


def _name(row: dict[str, Any]) -> str:
    kind = {"capacity": "capacity", "steady": row["rate"], "ramp": f"ramp {row['rate']}"}[row["kind"]]
    return f"{row['query']} {kind}" + (" adaptive" if row["adaptive"] else "")


def _findings(result: dict[str, Any]) -> list[str]:
    """One line for each operating point: what it holds and what it knows."""
    lines = []
    for query, rows in steady(result).items():
        held, top1 = held_in_words(held_rps(rows, result["slo_s"])), pooled(result, query)
        lines.append(
            f"{named(query)}: {held} with p99 within {1e3 * result['slo_s']:.0f} ms, top-1 {100 * top1['value']:.1f} % "
            f"({100 * top1['low']:.1f} to {100 * top1['high']:.1f} on {top1['images']} images)"
        )
    return lines


def _warnings(result: dict[str, Any]) -> list[str]:
    lines = []
    cells = result["cells"]
    if invalid := [_name(row) for row in cells if not row["summary"]["lag"]["valid"]]:
        lines.append(f"INVALID, the generator was late or nothing was answered: {'; '.join(invalid)}")
    for row in cells:
        lines += [f"{_name(row)}: {count} x {what}" for what, count in row["summary"]["errors"].items()]
    if any(row["summary"]["cached_ratio"] for row in cells):
        lines.append("some answers came from the service's cache: set SKIPVIT_CACHE_BYTES=0 to measure the model")
    if not result["complete"]:
        lines.append("not complete: the same command goes on")
    return lines


def _page(result: dict[str, Any], rows: list[tables.Row], pictures: list[Path]) -> str:
    about = result["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    facts = {
        "model": f"{result['model']['name']} {result['model']['version']}",
        "images": result["images"],
        "command": about["command"],
        "commit": about["commit"] or "unknown",
        "machine": f"{about['cpu']}, {about['cpus']} CPUs, {about['memory_gib']} GiB, {about['system']}",
        "versions": f"Python {about['python']}, {packages}",
        "date": about["date"],
    }
    listed = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(str(text))}</li>" for name, text in facts.items())
    images = "".join(f'<img alt="{file.stem.replace("_", " ")}" src="{_data_uri(file)}">' for file in pictures)
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in [*_findings(result), *_warnings(result)])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>skipvit load test</title><style>{_STYLE}</style>'
        "<h1>Accuracy and latency under load</h1><p>Open loop: latency counts from when a request was due, to its last "
        f"byte. Rates marked x are multiples of the capacity of {html.escape(result['reference'])}.</p>"
        f'<ul>{notes}</ul>{images}<div class="scroll">{tables.as_html(rows)}</div><ul>{listed}</ul></html>\n'
    )


def _data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
