"""PURE: the two figures of `results.json`: a checkpoint against its rivals, and the short runs behind its choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from models.figures import BLUE, COLOURS, FAINT, GREEN, INK, ORANGE, ORDERED, new_figure, panel

WORST_SHOWN = 0.08  # of accuracy below the dense model: what loses more is left out
PINK, SKY, YELLOW = COLOURS[3:]
SHORT_STYLES = {
    "context": (BLUE, "-"),
    "cls": (SKY, "-"),
    "normed": (GREEN, "-"),
    "mlp": (YELLOW, "-"),
    "kept_only": (PINK, "--"),
    "skip_mlp": (ORANGE, "--"),
    "cls_attention": (FAINT, "-."),
    "random": (FAINT, ":"),
}

Row = dict[str, Any]


def frontier(results: Row, beside: Mapping[str, Sequence[Row]] | None = None) -> Figure:
    """Accuracy against cost: the checkpoint at every size and threshold, and every rival.

    Args:
        beside: points of the same model that the results lack: two looks as they are served, token merging.
    """
    dense, best = results["dense"], results["frontiers"]
    floor = dense["top1"] - WORST_SHOWN
    note = f"{results['images']:,} test images of {results['data']}; lines that leave the picture go on below it"
    figure = new_figure(6.6, _bargain(results), note)
    axis = figure.subplots()
    _line(axis, best["two_step_tuned"], "two dense models: the small one first, a larger one where unsure", GREEN, 2.2)
    _line(axis, best["tuned"], "dense models, one trained for each size", ORANGE, 1.6, linestyle="--", marker="s")
    _line(axis, best["two_step_joint"], "one checkpoint: small first, a larger input where unsure", PINK, 2.2)
    _also(axis, beside or {})
    _line(axis, best["joint"], "one checkpoint: the best pairs of size and threshold", BLUE, 5, alpha=0.45, zorder=1.9)
    _line(axis, best["resize_alone"], "one checkpoint: no patch skipped", BLUE, 1.6, linestyle="--", marker="o")
    joint = next(run["points"] for run in results["runs"] if run["name"] == "joint")
    sizes = sorted({row["size_px"] for row in joint}, reverse=True)
    for index, size_px in enumerate(sizes):
        own, colour = [row for row in joint if row["size_px"] == size_px], colormaps[ORDERED](0.22 * index)
        label = "one checkpoint: one size, thresholds from 0 (right) up" if index == 0 else ""
        _line(axis, own, label, colour, 1, marker=".", markersize=5)
        lowest = min((row for row in own if row["top1"] > floor), key=lambda row: row["top1"], default=own[0])
        _name(axis, lowest, f"{size_px} px", (5, -3) if index else (-43, -3), colour)
    for row in best["tuned"]:
        _name(axis, row, f"{row['size_px']} px", (4, -13), ORANGE)
    axis.plot(1, dense["top1"], color=INK, marker="*", markersize=15, linestyle="", label="the dense model at 112 px")
    _panel(axis, dense, "top-1 accuracy, test images")
    axis.set(xlim=(best["tuned"][-1]["macs_ratio"] - 0.08, 1.06), ylim=(floor, dense["top1"] + 0.006))
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def ablations(results: Row) -> Figure:
    """Held-out accuracy against cost of the first short runs, one change each."""
    short, data = results["short_runs"][0], results["data"].split(" (")[0]
    runs, dense = {run["name"]: run for run in short["runs"]}, short["runs"][0]["points"][0]["top1"]
    error, training = short["standard_error_points"], short["runs"][0]["training"]
    note = f"{short['images']:,} held-out training images of {data}; {training['epochs']} epochs from one dense start; "
    figure = new_figure(5.8, _gap(short), note + f"band: one standard error, {error:.1f} points")
    axis = figure.subplots()
    axis.axhline(dense, color=INK, linewidth=1)
    axis.axhspan(dense - error / 100, dense + error / 100, color=FAINT, alpha=0.15, linewidth=0)
    axis.plot(1, dense, color=INK, marker="*", markersize=13, linestyle="", label=runs["dense"]["what"])
    for name, (colour, style) in SHORT_STYLES.items():
        _line(axis, runs[name]["points"], runs[name]["what"], colour, 2, linestyle=style, marker="o", markersize=4)
    _panel(axis, results["dense"], "top-1 accuracy, held-out images")
    axis.set_ylim(min(row["top1"] for row in runs["cls_attention"]["points"]) - 0.05, dense + 0.012)
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def _bargain(results: Row) -> str:
    """What is lost at the first budget and at the last, in words."""
    lost = {method["name"]: [method["reached"][i] for i in (0, -1)] for method in results["methods"]}
    spans = {name: " and ".join(f"{row['lost_points']:.1f}" if row else "-" for row in lost[name]) for name in lost}
    first, last = (100 * results["budgets"][i] for i in (0, -1))
    return (
        f"Points lost at {first:.0f} and {last:.0f} % of the MACs: one checkpoint {spans['joint']}, "
        f"two dense models in two steps {spans['two_step_tuned']}"
    )


def _gap(short: Row) -> str:
    """What the lowest cost that all methods reach tells, in words."""
    at = {run["name"]: run["top1_at_shares"] for run in short["runs"] if run["name"] in SHORT_STYLES}
    common = [i for i in range(len(short["shares"])) if all(top1[i] is not None for top1 in at.values())]
    if not common:
        return "Accuracy of short runs, one change each"
    i, others = common[-1], ("cls_attention", "random")
    learned = [100 * top1[i] for name, top1 in at.items() if name not in others]
    attended, random = (100 * at[name][i] for name in others)
    return (
        f"At {100 * short['shares'][i]:.0f} % of the MACs learned gates reach {min(learned):.1f} to "
        f"{max(learned):.1f} %, CLS attention {attended:.1f} %, random patches {random:.1f} %"
    )


def _also(axis: Axes, beside: Mapping[str, Sequence[Row]]) -> None:
    """The lines that only a bundle has."""
    if looks := beside.get("served_looks"):
        what = f"the same as it is served, up to {max(row['again_px'] for row in looks)} px"
        _line(axis, looks, what, PINK, 1.4, linestyle=":", marker="D", markersize=4)
    if merging := beside.get("merging"):
        what = "one checkpoint at 112 px: alike patches merge, none is skipped (ToMe)"
        _line(axis, merging, what, YELLOW, 1.6, marker="^")


def _line(axis: Axes, rows: Sequence[Row], label: str, colour: Any, width: float, **style: Any) -> None:
    cost, top1 = ([row[name] for row in rows] for name in ("macs_ratio", "top1"))
    axis.plot(cost, top1, color=colour, linewidth=width, label=label, **style)


def _name(axis: Axes, row: Row, text: str, offset: tuple[int, int], colour: Any) -> None:
    at = (row["macs_ratio"], row["top1"])
    around = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axis.annotate(text, at, offset, textcoords="offset points", fontsize=9, color=colour, bbox=around)


def _panel(axis: Axes, dense: Row, top1: str) -> None:
    below = f"MACs, share of the dense model's at {dense['size_px']} px (cheaper to the left)"
    panel(axis, "", below, top1, percent="xy")
    axis.xaxis.set_major_locator(MultipleLocator(0.1))
    axis.yaxis.set_major_locator(MultipleLocator(0.01))
