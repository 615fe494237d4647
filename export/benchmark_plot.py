"""PURE: the benchmark's picture, accuracy against images a second in the largest batches, from its result alone.

Every line and point is named where it lies; names look for the place where they hide least. It knows no files but the
PNG that `save` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from export.equal_accuracy import COMPARED, WORDS, frontier, speeds
from export.rivals import COMPILED, DENSE, DENSE_INT8, MERGING, OPENVINO, TIMM
from models import figures
from models.figures import BLUE, COLOURS, FAINT, GREEN, INK, ORANGE, new_figure, panel

PINK, SKY, YELLOW = COLOURS[3:]
WORST_SHOWN = 0.08  # of accuracy below the dense model: what loses more is left out
Style = tuple[str, str, dict[str, Any]]  # what it is called, colour, style
TWICE: dict[str, Style] = {  # in two looks
    "float32": ("skipvit: two looks", BLUE, {"linewidth": 4, "marker": "o"}),
    "int8": ("skipvit: two looks in int8", SKY, {"linewidth": 4, "marker": "o"}),
}
LINES: dict[str, Style] = {
    "float32": ("skipvit: one look", BLUE, {"linewidth": 1.6, "marker": "o"}),
    "int8": ("skipvit: one look in int8", SKY, {"linewidth": 1.6, "marker": "o"}),
    DENSE: ("dense in ONNX Runtime, lower resolution", ORANGE, {"linewidth": 1.6, "linestyle": "--", "marker": "s"}),
    DENSE_INT8: ("dense in int8", YELLOW, {"linewidth": 1.6, "linestyle": "--", "marker": "s"}),
    OPENVINO: ("dense in OpenVINO", GREEN, {"linewidth": 1.6, "linestyle": "--", "marker": "^"}),
    MERGING: ("token merging", PINK, {"linewidth": 1.6, "linestyle": "-.", "marker": "D"}),
}
POINTS = {TIMM: (FAINT, "X"), COMPILED: (INK, "P")}
PRESETS = ("balanced", "economy")  # those that are named
_RADII = (9, 16, 26, 38, 52)  # points, from what is named to its name
_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)

Row = dict[str, Any]


class Name(NamedTuple):
    """A text for a point of the picture."""

    at: tuple[float, float]  # images/s, accuracy
    text: str
    colour: str
    size: float = 9.5
    weight: str = "normal"


def save(result: Row, file: Path) -> None:
    """Write the PNG.

    Raises:
        ValueError: no accuracy is known.
    """
    figures.save(draw(result), file)


def draw(result: Row) -> Figure:
    """Accuracy against images a second: a line for each way to compute less, a point for each other runtime.

    Raises:
        ValueError: the dense model's accuracy isn't known.
    """
    largest = max(row["batch_size"] for row in result["rows"])
    rows = [row for row in result["rows"] if row["batch_size"] == largest and row["accuracy"] is not None]
    compared = [row for row in result["equal_accuracy"] if row["batch_size"] == largest]
    if not any(row["precision"] == DENSE for row in rows):
        raise ValueError("nothing to plot: the dense model's accuracy isn't known")
    top = max(row["accuracy"] for row in rows)
    floor = max(top - WORST_SHOWN, min(speeds(rows, DENSE))[0] - 0.016)
    figure = new_figure(6.2, _finding(compared, largest), _note(result["machine"], largest))
    axis = figure.subplots()
    names: list[Name] = []
    lines: list[Name] = []
    for twice, kind, (label, colour, style) in _lines():
        if points := speeds(rows, kind, twice=twice):
            best = frontier(points)
            shown = best if kind in COMPARED else sorted(points, key=itemgetter(1))
            top1, images_s = zip(*shown, strict=True)
            axis.plot(images_s, top1, color=colour, markersize=6, **style)
            seen = [point for point in best if point[0] >= floor]
            lines += [Name(seen[0][::-1], label, colour, 11, "bold")] if seen else []
    for row in rows:
        if row["precision"] in POINTS:
            colour, marker = POINTS[row["precision"]]
            axis.plot(row["images_s"], row["accuracy"], color=colour, marker=marker, markersize=10, linestyle="")
            names.append(Name((row["images_s"], row["accuracy"]), row["rival"], colour, 10.5))
    names += [name for name in _settings(rows, compared) if name.at[1] >= floor]
    panel(axis, "", f"images a second, batches of {largest} (faster to the right)", "top-1 accuracy, test images")
    axis.yaxis.set_major_formatter(figures.PERCENT)
    slowest, fastest = (end(row["images_s"] for row in rows) for end in (min, max))
    axis.set(xscale="log", xlim=(slowest / 1.15, fastest * 1.25), ylim=(floor, top + 0.016))
    axis.xaxis.set_major_locator(LogLocator(10, (1, 1.5, 2, 3, 4, 5, 7)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    _place(figure, axis, names + lines)
    return figure


def _lines() -> list[tuple[bool, str, Style]]:
    """Whether it is in two looks, its kind, how it is drawn."""
    return [(twice, kind, style) for twice, lines in ((True, TWICE), (False, LINES)) for kind, style in lines.items()]


def _settings(rows: Sequence[Row], compared: Sequence[Row]) -> list[Name]:
    """Input sizes of the dense models and of the best two looks, merged patches, presets."""
    found, best = [], {point[::-1] for kind in TWICE for point in frontier(speeds(rows, kind, twice=True))}
    named = {(row["images_s"], row["accuracy"]) for row in compared if row["setting"] in PRESETS}
    for row in rows:
        at, kind = (row["images_s"], row["accuracy"]), row["precision"]
        if kind in (DENSE, DENSE_INT8):
            found.append(Name(at, f"{row['size_px']} px", LINES[kind][1]))
        elif row["sure"] and at in best - named:
            found.append(Name(at, f"{row['size_px']}→{row['again_px']}", LINES[kind][1], 8.5))
        elif kind == MERGING:
            found.append(Name(at, row["rival"].rpartition(" ")[2], LINES[kind][1]))
    for row in compared:
        if row["setting"] in PRESETS:
            found.append(Name((row["images_s"], row["accuracy"]), row["setting"], LINES[row["precision"]][1], 10.5))
    return found


def _finding(compared: Sequence[Row], batch_size: int) -> str:
    """What the comparison at equal accuracy says where it is nearest to that of the preset `balanced`."""
    float32 = [row for row in compared if row["precision"] == "float32" and any(row["rivals"].values())]
    balanced = [row["accuracy"] for row in float32 if row["setting"] == "balanced"]
    looks = [row for row in float32 if row["setting"].startswith("two looks")] or float32
    if not looks:
        return f"Accuracy against images a second in batches of {batch_size}"
    shown = min(looks, key=lambda row: abs(row["accuracy"] - balanced[0])) if balanced else looks[0]
    beside = [f"{WORDS[kind]} {speed:.0f}" for kind, speed in shown["rivals"].items() if speed]
    ours = f"At {100 * shown['accuracy']:.1f} % top-1: skipvit {shown['images_s']:.0f} images/s"
    return ", ".join([ours, *beside])


def _note(machine: Row, batch_size: int) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("onnxruntime", "torch", "openvino") if name in machine)
    looks = "a→b: all at a px, the unsure at b px as well"
    return f"{looks}. {machine['cpu']}, {machine['threads']} threads, batches of {batch_size}; {versions}"


def _place(figure: Figure, axis: Axes, names: Sequence[Name]) -> None:
    """Write every name beside its point, where it covers least of lines, points and other names."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    frame = axis.get_window_extent()
    taken: list[Bbox] = []
    drawn = np.concatenate([_pixels(axis, line.get_xydata()) for line in axis.lines])
    for name in names:
        text = axis.annotate(
            name.text,
            name.at,
            (0, 0),
            textcoords="offset points",
            color=name.colour,
            fontsize=name.size,
            fontweight=name.weight,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": name.colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
        )
        text.set_in_layout(False)
        start, places = axis.transData.transform(name.at), _offsets(text, canvas)
        hidden = [_hidden(_box(text, place, canvas), start, frame, taken, drawn) for place in places]
        taken.append(_box(text, places[int(np.argmin(hidden))], canvas))
        drawn = np.concatenate([drawn, _leader(start, taken[-1])])


def _offsets(text: Annotation, canvas: FigureCanvasAgg) -> list[tuple[float, float]]:
    """Places to try, nearest first, points: the text's own edge keeps the radius, whatever its length."""
    box, scale = _box(text, (0, 0), canvas), 72 / canvas.figure.dpi
    half = 0.5 * scale * np.array([box.width, box.height])
    rays = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)  # (16, 2)
    found = np.concatenate([radius * rays + half * np.sign(rays.round(6)) * (abs(rays) > 0.3) for radius in _RADII])
    return [(float(x), float(y)) for x, y in found]


def _box(text: Annotation, offset: tuple[float, float], canvas: FigureCanvasAgg) -> Bbox:
    text.set_position(offset)
    text.update_positions(canvas.get_renderer())
    return Text.get_window_extent(text, canvas.get_renderer()).padded(3)  # an Annotation's own has its line, too


def _hidden(box: Bbox, start: Any, frame: Bbox, taken: Sequence[Bbox], drawn: Any) -> float:
    """How much a name and its line from `start` would hide or be cut: other names and the frame weigh most."""
    line = _leader(start, box)
    far = 0.15 * float(np.hypot(*(line[-1] - start)))
    over = far + 5 * _inside(box, drawn) + 20 * sum(_inside(other, line) for other in taken)
    cut = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return over + 200 * sum(box.overlaps(other) for other in taken) + 1000 * cut


def _leader(start: Any, box: Bbox) -> Any:
    """The line to a name, samples (n, 2) in pixels."""
    end = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    return start + np.linspace(0, 1, 20)[:, None] * (end - start)


def _inside(box: Bbox, points: Any) -> int:
    x, y = points.T
    return int(((box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)).sum())


def _pixels(axis: Axes, data: Any) -> Any:
    """A line as dense samples (n, 2) in pixels; those of its markers weigh as much as a piece of it."""
    corners = axis.transData.transform(data)
    steps = np.linspace(0, 1, 60)[:, None]
    sampled = [a + steps * (b - a) for a, b in zip(corners[:-1], corners[1:], strict=True)]
    marker = 8 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    return np.concatenate([*sampled, *[corners + place for place in marker for _ in range(8)]])
