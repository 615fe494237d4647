"""PURE: the write-up's figures from numbers already computed; matplotlib's object API alone, so nothing global is kept.

Each NamedTuple is what one figure draws, `g` the side of the square grid of patches (P = g * g), ratios in [0, 1].
It knows no model and no files but the PNG that `save` writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

DPI = 140
WIDTH_IN = 10.0  # 1400 px
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito's: told apart by the colour-blind
INK, FAINT = "#222222", "#777777"
ORDERED = "viridis"  # colour map of depths and of thresholds
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
KEPT, AGAIN, GONE = 0, 1, 2  # states of a patch in a layer: computed; idle and used again later; idle from here on
AGAIN_TINT = np.array([190.0, 50.0, 210.0])  # RGB of patches in state AGAIN: a colour that photographs seldom have
SMALL_LOSS = 2.0  # of accuracy, percentage points
TILES_A_LINE = 8  # of the layer-by-layer figure; longer rows are broken into lines of equal length

Floats = NDArray[np.floating[Any]]


class Similarity(NamedTuple):
    """Scaled cosine similarity of same-positioned patches, from each layer's input to its output."""

    edges: Floats  # (bins + 1,)
    share: Floats  # (L, bins), of the layer's patches
    mean: Floats  # (L,)
    p10: Floats  # (L,)
    p90: Floats  # (L,)


class Curve(NamedTuple):
    """One evaluation; T thresholds."""

    label: str
    threshold: Floats  # (T,)
    top1: Floats  # (T,)
    skipped: Floats  # (T,) share of the patches, mean over images and gated layers


class Keep(NamedTuple):
    """Mean share of patches each gated layer computes."""

    threshold: Floats  # (T,)
    share: Floats  # (T, gated)
    gated_layers: tuple[int, ...]  # of layers 0 to the model's last


class Example(NamedTuple):
    """One image and what became of its patches."""

    image: NDArray[np.uint8]  # (S, S, 3)
    label: str
    states: NDArray[np.uint8]  # (gated, P), KEPT, AGAIN or GONE
    depth: NDArray[np.int64]  # (P,) gated layers that computed the patch


class Adaptive(NamedTuple):
    """MACs, relative to the dense model, against how hard an image is; D bins of equally many images."""

    edges: Floats  # (bins + 1,) of the MACs
    easy: Floats  # (bins,) share of the easy images
    hard: Floats  # (bins,)
    easy_mean: float
    hard_mean: float
    decile_loss: Floats  # (D,) mean cross-entropy of the true class in the dense model, nats
    decile_mean: Floats  # (D,) MACs
    decile_p10: Floats  # (D,)
    decile_p90: Floats  # (D,)
    spearman: float  # MACs against cross-entropy; NaN where every image costs the same


def similarity(after: Similarity, before: Similarity | None, note: str) -> Figure:
    """Heat map of each layer's similarities, and their means; with `before`, the state before training as well."""
    shown = [(" after training" if before else "", after, BLUE)]
    shown = [(" before training", before, FAINT), *shown] if before else shown
    finding = f"Patches change most in layer {after.mean.argmin()} (similarity {after.mean.min():.2f}), "
    finding += f"least in layer {after.mean.argmax()} ({after.mean.max():.2f}){shown[-1][0]}"
    figure = new_figure(4.4, finding, note)
    *maps, means = figure.subplots(1, len(shown) + 1, sharey=True)
    top = max(float(values.share.max()) for _, values, _ in shown)
    layer = np.arange(len(after.mean))
    for axis, (when, values, colour) in zip(maps, shown, strict=True):
        mesh = axis.pcolormesh([*(layer - 0.5), layer[-1] + 0.5], values.edges, values.share.T, cmap="Blues", vmax=top)
        axis.plot(layer, values.mean, color=INK, marker="o", markersize=3, linewidth=1, label="mean")
        panel(axis, f"all patches{when}", "layer, from 0", "", grid=False)
        means.fill_between(layer, values.p10, values.p90, color=colour, alpha=0.18, linewidth=0)
        means.plot(layer, values.mean, color=colour, marker="o", label=f"mean{when}")
    _colour_bar(figure, mesh, maps[-1], "share of the layer's patches").ax.yaxis.set_major_formatter(PERCENT)
    panel(means, "mean; band: 10 to 90 %", "layer, from 0", "")
    means.tick_params(labelleft=True)
    maps[0].set_ylabel("scaled cosine similarity of a patch,\nlayer's input to its output")
    maps[0].set_ylim(min(float(values.p10.min()) for _, values, _ in shown) - 0.15, 1)
    for axis in (*maps, means):
        axis.xaxis.set_major_locator(MaxNLocator(14 if before is None else 6, integer=True))
        axis.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def threshold(curves: Sequence[Curve]) -> Figure:
    """Accuracy above, skipped patches below, against the score threshold; a line for each evaluation."""
    figure = new_figure(6.2, _bargain(curves), "")
    accuracy, skipped = figure.subplots(2, 1, sharex=True, sharey=True)
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        accuracy.plot(curve.threshold, curve.top1, color=colour, marker="o", label=curve.label)
        skipped.plot(curve.threshold, curve.skipped, color=colour, marker="o")
    below = "score threshold: a patch that scores no higher is skipped"
    panel(accuracy, "accuracy on test images", "", "top-1 accuracy", percent="y")
    panel(skipped, "patches skipped, mean over images and gated layers", below, "share of patches", percent="y")
    skipped.set_ylim(0, 1.03)
    skipped.xaxis.set_major_locator(MaxNLocator(11))
    accuracy.legend(loc="best", frameon=False)
    return figure


def _bargain(curves: Sequence[Curve]) -> str:
    """The most patches skipped for a small loss of accuracy, in words."""
    found = []
    for curve in curves:
        lost = 100 * (curve.top1[curve.threshold.argmin()] - curve.top1)  # percentage points
        small = np.flatnonzero((lost <= SMALL_LOSS) & (curve.skipped > 0))
        found += [(curve.skipped[i], lost[i], curve.threshold[i], curve.label) for i in small]
    if not found:
        return f"Every threshold measured loses more than {SMALL_LOSS:g} points of accuracy"
    share, points, level, label = max(found)
    finding = f"{100 * share:.1f} % of patches skipped for {max(0.0, points):.1f} points of accuracy "
    return finding + f"({label.split(' (')[0]}, threshold {level:g})"


def keep(data: Keep, marked: float, note: str) -> Figure:
    """Share of patches each layer computes, a line for each threshold; the one at `marked` is heavier."""
    chosen = int(np.abs(data.threshold - marked).argmin())
    shares = 100 * data.share[chosen]
    finding = f"At threshold {data.threshold[chosen]:g} layer {data.gated_layers[shares.argmin()]} computes "
    finding += f"{shares.min():.0f} % of its patches, the mean gated layer {shares.mean():.0f} %"
    figure = new_figure(4.6, finding, note)
    axis = figure.subplots()
    for index, (level, share) in enumerate(zip(data.threshold, data.share, strict=True)):
        colour, width = colormaps[ORDERED](0.9 * index / len(data.share)), 3.5 if index == chosen else 1.4
        axis.plot(data.gated_layers, share, color=colour, linewidth=width, marker="o", label=f"{level:g}")
    panel(axis, "mean over images, layers with a gate", "layer, from 0", "share of patches computed", percent="y")
    axis.set(xticks=data.gated_layers, ylim=(0, 1.04))
    axis.legend(title="score threshold", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def layers(examples: Sequence[Example], gated_layers: Sequence[int], level: float, note: str) -> Figure:
    """For each image: the image, its patches in every gated layer, and how many of these layers computed each."""
    lines = -(-(len(gated_layers) + 2) // TILES_A_LINE)
    across = -(-(len(gated_layers) + 2) // lines)
    height_in = 0.8 + len(examples) * lines * ((WIDTH_IN - 1.2) / across + 0.27)
    figure = new_figure(height_in, f"The patches that each layer computes, at score threshold {level:g}", note)
    grid = figure.subplots(len(examples) * lines, across, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    low = min(int(example.depth.min()) for example in examples)
    for example, tiles in zip(examples, grid.reshape(len(examples), -1), strict=True):
        tiles[0].imshow(example.image)
        tiles[0].set_title(example.label.replace("_", " "), fontsize=11, fontweight="bold", color=INK)
        for axis, layer, states in zip(tiles[1:], gated_layers, example.states, strict=False):
            axis.imshow(shade(example.image, states))
            axis.set_title(f"layer {layer}: {(states == KEPT).sum()} of {len(states)}", fontsize=9, color=INK)
        g, last = side(len(example.depth)), tiles[len(gated_layers) + 1]
        steps = colormaps[ORDERED].resampled(len(gated_layers) - low + 1)
        depths = last.imshow(example.depth.reshape(g, g), cmap=steps, vmin=low - 0.5, vmax=len(gated_layers) + 0.5)
        last.set_title(f"depth, mean {example.depth.mean():.1f}", fontsize=9, color=INK)
    bar = _colour_bar(figure, depths, list(grid[:, -1]), "depth: layers that computed the patch")
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    swatches = [
        Patch(facecolor="white", edgecolor=INK, label="computed"),
        Patch(facecolor=tuple(0.6 * AGAIN_TINT / 255), label="skipped, computed again in a later layer"),
        Patch(facecolor="black", label="skipped from here on"),
    ]
    figure.legend(handles=swatches, loc="outside lower right", ncols=3, frameon=False, fontsize=10)
    return figure


def adaptive(data: Adaptive, note: str) -> Figure:
    """MACs of easy and of hard images, and mean MACs against the dense model's difficulty with an image."""
    rank = f"{data.spearman:+.2f}" if math.isfinite(data.spearman) else "undefined"
    finding = f"Easy images use {100 * data.easy_mean:.1f} %, hard ones {100 * data.hard_mean:.1f} % "
    finding += f"of the dense MACs (Spearman {rank})"
    figure, cost = new_figure(4.8, finding, note), "MACs, share of the dense model's"
    histogram, deciles = figure.subplots(1, 2)
    for name, share, mean, colour in (
        ("easy: the third the dense model is surest of, and right", data.easy, data.easy_mean, BLUE),
        ("hard: the third where it gives the true class least", data.hard, data.hard_mean, ORANGE),
    ):
        histogram.stairs(share, data.edges, fill=True, color=colour, alpha=0.3)
        histogram.stairs(share, data.edges, color=colour, linewidth=1.5, label=name)
        histogram.axvline(mean, ymax=0.76, color=colour, linestyle="--", linewidth=1.5)
    histogram.plot([], [], color=FAINT, linestyle="--", linewidth=1.5, label="mean")
    histogram.set_ylim(0, 1.4 * max(data.easy.max(), data.hard.max()))
    panel(histogram, "compute of easy and of hard images", cost, "share of the group", percent="xy")
    tenth = np.arange(1, len(data.decile_mean) + 1)
    deciles.fill_between(tenth, data.decile_p10, data.decile_p90, color=GREEN, alpha=0.18, linewidth=0)
    deciles.plot(tenth, data.decile_mean, color=GREEN, marker="o", label="mean (band: 10th to 90th percentile)")
    deciles.margins(y=0.2)
    below = "tenth of the images, easiest first; below it the\ndense model's mean loss on the true class, nats"
    panel(deciles, "compute by difficulty", below, cost, percent="y")
    deciles.set_xticks(tenth, [f"{i}\n{loss:.2g}" for i, loss in zip(tenth, data.decile_loss, strict=True)])
    for axis in (histogram, deciles):
        axis.legend(loc="upper left", frameon=False, fontsize=9)
    histogram.xaxis.set_major_locator(MaxNLocator(6))
    return figure


def depth(mean: Floats, rings: Floats, gated_layers: int, note: str) -> Figure:
    """Mean gated layers that compute a patch: by position (g, g), and by square ring from the border (ceil(g / 2),)."""
    finding = f"Central patches run in {rings[-1]:.1f} of {gated_layers} gated layers, border ones in {rings[0]:.1f}"
    figure = new_figure(4.8, finding, note)
    positions, distances = figure.subplots(1, 2, width_ratios=(1.25, 1))
    image = positions.imshow(mean, cmap=ORDERED)
    if len(mean) <= 10:
        for (row, column), value in np.ndenumerate(mean):
            colour = "white" if 2 * value < mean.min() + mean.max() else "black"
            positions.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    panel(positions, "mean depth by position in the image", "patch column", "patch row", grid=False)
    _colour_bar(figure, image, positions, "depth: gated layers that compute the patch")
    distances.plot(rings, color=BLUE, marker="o")
    panel(distances, "mean depth by distance from the border", "distance from the border, patches", "")
    distances.set_ylim(np.floor(rings.min() - 0.5).clip(0), gated_layers)
    distances.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for ticks in (positions.xaxis, positions.yaxis, distances.xaxis):
        ticks.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def shade(image: NDArray[np.uint8], states: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (S, S, 3) with its patches (P,) in state AGAIN dark and tinted, and in state GONE black."""
    g, size_px = side(len(states)), len(image)
    patch_of = np.arange(size_px) * g // size_px  # (S,) patch row or column of each pixel
    state = states.reshape(g, g)[patch_of][:, patch_of, None]  # (S, S, 1)
    return np.select([state == KEPT, state == AGAIN], [image, 0.3 * image + 0.45 * AGAIN_TINT], 0).astype(np.uint8)


def side(patches: int) -> int:
    """g of a square grid of g * g patches; ValueError where it is none."""
    g = math.isqrt(patches)
    if g * g != patches:
        raise ValueError(f"{patches} patches are no square grid")
    return g


def save(figure: Figure, file: Path) -> None:
    """Write the PNG with 256 colours, the same bytes for the same numbers, and free the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    figure.clear()


def new_figure(height_in: float, title: str, note: str) -> Figure:
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    size = min(13.0, 13.0 * 82 / len(title))  # about 82 letters fill the width
    figure.suptitle(title, x=0.008, ha="left", fontsize=size, fontweight="bold", color=INK)
    figure.supxlabel(note, x=0.008, ha="left", fontsize=8, color=FAINT)
    return figure


def panel(axis: Axes, title: str, x: str, y: str, *, grid: bool = True, percent: str = "") -> None:
    """Titles and plain spines; `percent` names the axes, x and y, whose ratios are written as percentages."""
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    axis.set(xlabel=x, ylabel=y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK, labelsize=9)
    if grid:
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axis.set_axisbelow(True)
    for name in percent:
        (axis.xaxis if name == "x" else axis.yaxis).set_major_formatter(PERCENT)


def _colour_bar(figure: Figure, drawn: ScalarMappable, beside: Axes | list[Axes], label: str) -> Colorbar:
    bar = figure.colorbar(drawn, ax=beside, pad=0.02, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=9)
    bar.ax.spines[:].set_visible(False)
    return bar
