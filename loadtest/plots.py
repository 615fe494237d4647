"""PURE: the four pictures of a sweep, from its result alone; a title says what a picture shows, in numbers.

matplotlib's object API alone, so nothing global is kept. Colours are told apart by the colour-blind; a threshold's is
the same in every picture. It knows no files but the PNGs that `save_all` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loadtest.findings import (
    REFUSED_SHOWN,
    Row,
    frontier,
    held_in_words,
    held_rps,
    images_in_words,
    layers,
    missing_ratio,
    named,
    p99_ms,
    pooled,
    steady,
    tradeoff,
)
from loadtest.grid import RAMP_FROM
from loadtest.summary import wilson

DPI, WIDTH_IN = 140, 10.0
BLUE, ORANGE, INK, FAINT = "#0072B2", "#D55E00", "#222222", "#777777"
PRESETS = {"preset=full": BLUE, "preset=balanced": "#E69F00", "preset=economy": "#CC79A7"}
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
MARKED: Row = {"marker": "o", "markersize": 5}
LETTER = 0.0092  # width of one, of the axis' width
ADAPTIVE: Row = {"color": ORANGE, "linestyle": ":", "linewidth": 1.8, "marker": "*", "markersize": 10}
ACCURACY_BINS = 6  # of a ramp: an accuracy needs more answers than a latency


def figures(result: Row) -> dict[str, Callable[[Row], Figure]]:
    """The pictures this result has the numbers for, by file name."""
    rows = result["cells"]
    found: dict[str, Callable[[Row], Figure]] = {}
    if steady(result):
        found |= {"latency_against_rate": latency_against_rate, "accuracy_against_latency": accuracy_against_latency}
    if len([row for row in rows if row["kind"] == "ramp"]) == 2:
        found["adaptive_ramp"] = adaptive_ramp
    if any(layers(row) for row in rows):
        found["skipped_per_layer"] = skipped_per_layer
    return found


def save_all(result: Row, folder: Path) -> list[Path]:
    """Draw every picture there are numbers for."""
    files = []
    for name, draw in figures(result).items():
        files.append(folder / f"{name}.png")
        save(draw(result), files[-1])
    return files


def save(figure: Figure, file: Path) -> None:
    """Write a picture as a PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=DPI)


def latency_against_rate(result: Row) -> Figure:
    """p99 against the arrival rate, a line for each operating point."""
    lines, slo_s = steady(result), result["slo_s"]
    held = {query: held_rps(rows, slo_s) for query, rows in lines.items()}
    best, reference = max(held, key=lambda query: held[query]), result["reference"]
    title = f"99 % within {1e3 * slo_s:.0f} ms: {held_in_words(held.get(reference, 0.0))} at {named(reference)}"
    if best != reference:
        title += f", {held_in_words(held[best])} at {named(best)}"
    figure = titled(5.6, title, result)
    axis = figure.subplots()
    drawn = [(rows, _style(query, result), named(query)) for query, rows in lines.items()]
    drawn += [(rows, ADAPTIVE, f"{named(query)}, adaptive") for query, rows in steady(result, adaptive=True).items()]
    for rows, style, label in drawn:
        rates, p99 = _column(rows, "rate_rps"), [p99_ms(row) for row in rows]
        axis.plot(rates, p99, **MARKED | style, label=label)
        refusing = [index for index, row in enumerate(rows) if missing_ratio(row) > REFUSED_SHOWN]
        axis.plot([rates[i] for i in refusing], [p99[i] for i in refusing], "x", color=INK, markersize=10, zorder=4)
    if any(missing_ratio(row) > REFUSED_SHOWN for rows, _, _ in drawn for row in rows):
        axis.plot([], [], "x", color=INK, markersize=10, label="more than 1 % refused or too late")
    axis.axhline(1e3 * slo_s, color=INK, linewidth=1, linestyle="--")
    axis.annotate(
        f"{1e3 * slo_s:.0f} ms",
        (1, 1e3 * slo_s),
        (-4, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    _log(axis, "y")
    panel(axis, "arrivals a second (open loop, Poisson)", "p99 latency, ms")
    axis.set_xlim(left=0)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def accuracy_against_latency(result: Row) -> Figure:
    """Top-1 against p99: for each arrival rate the operating points that none beats in both, the others faint."""
    lines = steady(result)
    top1 = {query: pooled(result, query) for query in lines}
    figure = titled(5.8, tradeoff(result), result)
    axis = figure.subplots()
    rates = sorted({row["rate_rps"] for rows in lines.values() for row in rows})
    for index, rps in enumerate(rates):
        here = [row for rows in lines.values() for row in rows if row["rate_rps"] == rps]
        colour = colormaps["viridis"](0.9 - 0.85 * index / max(1, len(rates) - 1))
        every = [(p99_ms(row), top1[row["query"]]["value"]) for row in here]
        axis.plot(*zip(*every, strict=True), "o", color=colour, markersize=6, alpha=0.45, markeredgewidth=0)
        best = frontier(here, top1)
        axis.plot(*zip(*best, strict=True), color=colour, linewidth=2, marker="o", label=f"{rps:.3g} arrivals a second")
    for query, rows in steady(result, adaptive=True).items():
        at = [(p99_ms(row), row["summary"]["top1"]["value"]) for row in rows]
        axis.plot(*zip(*at, strict=True), **ADAPTIVE, label=f"{named(query)}, adaptive,\nat the same rates")
    _log(axis, "x")
    _name_levels(axis, {named(query): top1[query]["value"] for query in lines})
    panel(axis, "p99 latency, ms (better to the left)", f"top-1 accuracy, {images_in_words(result)}", percent_y=True)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _name_levels(axis: Axes, levels: dict[str, float]) -> None:
    """Each operating point's name left of what is drawn, at its accuracy, or as near as the name below lets it be."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    share = min(0.5, 0.02 + LETTER * max(map(len, levels)))  # of the axis, which is logarithmic
    axis.set_xlim(left * (left / right) ** (share / (1 - share)), right)
    least, at = (high - low) / 26, low
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        axis.axhline(level, color=FAINT, linewidth=0.5, alpha=0.6, zorder=0)
        at = max(level, at + least)
        style: Row = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 9, "bbox": BEHIND_TEXT}
        axis.annotate(name, (0.01, at), **style)


def adaptive_ramp(result: Row) -> Figure:
    """What users get while arrivals ramp up, with fixed compute and with adaptive compute."""
    ramps = {row["adaptive"]: row for row in result["cells"] if row["kind"] == "ramp"}
    off, on = (ramps[adaptive]["summary"] for adaptive in (False, True))
    title = (
        f"Arrivals ramp up past capacity: answered within {1e3 * result['slo_s']:.0f} ms are "
        f"{100 * off['goodput_ratio']:.0f} % with fixed compute, {100 * on['goodput_ratio']:.0f} % with adaptive"
    )
    figure = titled(7.4, title, result)
    (latency, missing), (macs, top1) = figure.subplots(2, 2, sharex=True)
    for adaptive, row in sorted(ramps.items()):
        bins = row["summary"]["timeline"]
        label = f"{named(row['query'])}, {'adaptive' if adaptive else 'fixed'} compute"
        style: Row = {"color": ORANGE if adaptive else BLUE, "linewidth": 1.8, "label": label}
        rate = _ramp_rate(row, bins)
        latency.plot(rate, [1e3 * item["p99"] if item["p99"] else np.nan for item in bins], **style)
        missing.plot(rate, [item["unanswered_ratio"] or 0 for item in bins], **style)
        macs.plot(rate, [np.nan if item["macs_ratio"] is None else item["macs_ratio"] for item in bins], **style)
        _accuracy(top1, rate, bins, style)
    latency.axhline(1e3 * result["slo_s"], color=INK, linewidth=1, linestyle="--")
    capacity = next(row["summary"]["throughput_rps"] for row in result["cells"] if row["kind"] == "capacity")
    for axis in (latency, missing, macs, top1):
        axis.axvline(capacity, color=FAINT, linewidth=1, linestyle=":")
    latency.annotate(
        "capacity, fixed compute",
        (capacity, 0),
        (4, 5),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=8,
        color=FAINT,
    )
    _log(latency, "y")
    panel(latency, "", "p99 latency, ms")
    panel(missing, "", "refused or too late", percent_y=True)
    panel(macs, "arrivals a second, rising with time", "MACs spent, of dense", percent_y=True)
    panel(top1, "arrivals a second, rising with time", "top-1 accuracy (95 % interval)", percent_y=True)
    missing.set_ylim(-0.02, 1.02)
    macs.set_ylim(0, 1.1)
    missing.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def skipped_per_layer(result: Row) -> Figure:
    """Share of the patches that each layer skipped, a line for each operating point."""
    shares: dict[str, list[float]] = {}
    for row in result["cells"]:
        if (share := layers(row)) and not row["adaptive"] and row["kind"] != "ramp":
            shares.setdefault(row["query"], share)
    shown = {query: share for query, share in shares.items() if any(share)}
    most = max(shown, key=lambda query: sum(shown[query]), default="")
    title = "No patch was skipped"
    if most:
        deepest = int(np.argmax(shown[most]))
        skips = f"{100 * max(shown[most]):.0f} % of the patches"
        title = f"Where work is saved: at {named(most)} layer {deepest + 1} skips {skips}"
    figure = titled(5.2, title, result)
    axis = figure.subplots()
    gated = result["model"].get("gated_layers")
    for query, share in shares.items():
        at = range(len(share)) if gated is None else gated
        skipped = [share[layer] for layer in at]
        style = _style(query, result)
        axis.plot([layer + 1 for layer in at], skipped, **style, marker="o", markersize=4, label=named(query))
    panel(axis, "layer, of those that have a gate", "patches skipped, mean over all answers", percent_y=True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axis.set_ylim(-0.02, 1)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _accuracy(axis: Axes, rate: Sequence[float], bins: Sequence[Row], style: Row) -> None:
    """Top-1 with its interval in a few wide bins, each at the mean of its rates."""
    for part in np.array_split(np.arange(len(bins)), ACCURACY_BINS):
        answers = sum(bins[i]["answers"] for i in part)
        if not answers:
            continue
        value = sum(bins[i]["answers"] * bins[i]["top1"] for i in part if bins[i]["answers"]) / answers
        low, high = wilson(value, answers)
        at = float(np.mean([rate[i] for i in part])) + (rate[-1] - rate[0]) * (
            0.006 if style["color"] == ORANGE else -0.006
        )
        axis.errorbar(
            at,
            value,
            [[max(0, value - low)], [max(0, high - value)]],
            color=style["color"],
            marker="o",
            markersize=5,
            capsize=3,
        )


def _ramp_rate(row: Row, bins: Sequence[Row]) -> list[float]:
    """The rate a ramp had at the middle of each bin."""
    mean, end_s = row["rate_rps"], 2 * (bins[-1]["at_s"] + bins[0]["at_s"]) / 2
    return [mean * (RAMP_FROM + (2 - 2 * RAMP_FROM) * item["at_s"] / end_s) for item in bins]


def titled(height_in: float, title: str, result: Row) -> Figure:
    """An empty figure with the finding on top and the origin of its numbers at the bottom."""
    figure = Figure((WIDTH_IN, height_in), layout="constrained")
    about = result["environment"]
    model = result.get("model", {}).get("name", "")
    machine = f"{about['cpu']}, {about['cpus']} CPUs, {about['date']}, commit {about['commit'] or 'unknown'}"
    note = f"{model}; {result['images']}; {machine}"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left", wrap=True)
    figure.supxlabel(note, fontsize=8, color=FAINT, x=0.01, ha="left")
    return figure


def panel(axis: Axes, below: str, beside: str, *, percent_y: bool = False) -> None:
    """What the axes show, a faint grid, no box."""
    axis.set_xlabel(below)
    axis.set_ylabel(beside)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if percent_y:
        axis.yaxis.set_major_formatter(PERCENT)


def _log(axis: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers on it."""
    (axis.set_yscale if which == "y" else axis.set_xscale)("log")
    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    side.set_major_formatter(PLAIN)
    side.set_minor_formatter(NullFormatter())


def _style(query: str, result: Row) -> Row:
    """Thresholds on a scale from dark to light, presets and the rest in colours of their own, dashed."""
    if query.startswith("threshold="):
        return {"color": colormaps["viridis"](min(0.9, 1.1 * float(query.partition("=")[2]))), "linewidth": 1.8}
    return {"color": PRESETS.get(query, ORANGE), "linewidth": 1.8, "linestyle": "--"}


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]
