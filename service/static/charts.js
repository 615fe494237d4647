// SVG charts, drawn at the size they have on the page so that text keeps its size.

const LEFT = 46, RIGHT = 14, TOP = 14, BOTTOM = 36; // margins
export const percent = (ratio, digits = 0) => `${(100 * ratio).toFixed(digits)} %`;

function add(parent, name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

const line = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const steps = (from, to, step) => Array.from({ length: Math.floor((to - from) / step + 1e-6) + 1 }, (_, index) => from + index * step);

function clear(svg) {
  const { width, height } = svg.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  return { width, height };
}

// Axes from `x` and `y` = [from, to, step]; returns the scales and a group that is cut at the frame.
function axes(svg, { x, y, label, xText = percent }) {
  const { width, height } = clear(svg);
  const right = width - RIGHT, bottom = height - BOTTOM;
  const toX = (value) => LEFT + ((value - x[0]) / (x[1] - x[0])) * (right - LEFT);
  const toY = (value) => bottom - ((value - y[0]) / (y[1] - y[0])) * (bottom - TOP);
  for (const tick of steps(...y)) {
    add(svg, "path", { class: "grid", d: `M${LEFT} ${toY(tick)}H${right}` });
    add(svg, "text", { x: LEFT - 7, y: toY(tick) + 4, "text-anchor": "end" }, percent(tick));
  }
  for (const tick of steps(Math.ceil(x[0] / x[2]) * x[2], x[1], x[2])) {
    add(svg, "text", { x: toX(tick), y: bottom + 16, "text-anchor": "middle" }, xText(tick));
  }
  add(svg, "text", { x: (LEFT + right) / 2, y: height - 4, "text-anchor": "middle" }, label);
  const clip = `${svg.id}-clip`;
  add(add(svg, "clipPath", { id: clip }), "rect", { x: LEFT, y: 0, width, height: bottom });
  return { toX, toY, inside: add(svg, "g", { "clip-path": `url(#${clip})` }), bottom };
}

const ofSize = (calibration, sizePx) =>
  calibration.filter(({ size_px: px }) => px === sizePx).sort((a, b) => a.threshold - b.threshold);

// Calibrated accuracy against mean MACs, a line for each input size; `here` is this image at its setting, or null. Of two
// looks only the mean is known, and they are on no line.
export function drawCurve(svg, calibration, here) {
  const accuracies = calibration.filter(({ threshold }) => threshold <= 0.7).map(({ accuracy }) => accuracy);
  const low = Math.floor(20 * Math.min(...accuracies)) / 20, high = Math.min(1, Math.ceil(20 * Math.max(...accuracies)) / 20);
  const most = Math.max(1.05, ...calibration.map(({ macs_ratio: ratio }) => ratio.mean));
  const { toX, toY, inside, bottom } = axes(svg, { x: [0, most, 0.25], y: [low, high, 0.05], label: "MACs, share of the dense model" });
  for (const size of new Set(calibration.map(({ size_px: px }) => px))) {
    const points = ofSize(calibration, size).map((point) => [toX(point.macs_ratio.mean), toY(point.accuracy)]);
    add(inside, "path", { class: size === here?.sizePx ? "line-0" : "line-1", d: line(points) });
    add(svg, "text", { x: points[0][0] + 6, y: points[0][1] - 8, "text-anchor": "end" }, `${size} px`);
  }
  if (!here) return;
  const y = toY(here.accuracy), { mean, p10, p90 } = here.spread;
  add(inside, "path", { class: "ink dashed", d: `M${toX(here.ratio)} ${bottom}V${y}` });
  if (p10 !== undefined) add(inside, "path", { class: "ink", d: `M${toX(p10)} ${y}H${toX(p90)}` });
  add(inside, "circle", { cx: toX(mean), cy: y, r: 4 });
  add(inside, "circle", { class: "here", cx: toX(here.ratio), cy: y, r: 6 });
}

// The calibrated point at a setting: linear between the table's thresholds; null outside the table.
export function calibratedAt(calibration, sizePx, threshold) {
  const points = ofSize(calibration, sizePx);
  const above = points.findIndex((point) => point.threshold >= threshold);
  if (above < 0) return null;
  const upper = points[above], lower = points[Math.max(0, above - 1)];
  const share = upper === lower ? 0 : (threshold - lower.threshold) / (upper.threshold - lower.threshold);
  const between = (pick) => pick(lower) + share * (pick(upper) - pick(lower));
  const [mean, p10, p90] = ["mean", "p10", "p90"].map((name) => between(({ macs_ratio: ratio }) => ratio[name]));
  return { accuracy: between(({ accuracy }) => accuracy), spread: { mean, p10, p90 } };
}

// Probabilities over the slider's range: `lines` are [[value, probability], ...], the first in the accent.
export function drawSweep(svg, { lines, range, here, mark, label }) {
  const xText = (tick) => tick.toFixed(2);
  const { toX, toY, inside, bottom } = axes(svg, { x: [...range, 0.25], y: [0, 1, 0.25], label, xText });
  for (const [value, style] of [[mark, "ink"], [here, "ink dashed"]]) {
    if (value !== null) add(inside, "path", { class: style, d: `M${toX(value)} ${bottom}V${toY(1)}` });
  }
  lines.forEach((points, index) => {
    add(inside, "path", { class: `line-${index}`, d: line(points.map(([value, share]) => [toX(value), toY(share)])) });
  });
}

// Small lines over time, newest right, from 0 up; null leaves a gap.
export function drawSpark(svg, series, slots) {
  const { width, height } = clear(svg);
  const most = Math.max(...series.flat(), 1e-9);
  add(svg, "path", { class: "grid", d: `M0 ${height - 1}H${width}` });
  series.forEach((values, index) => {
    const x = (at) => width - 3 - ((values.length - 1 - at) * (width - 3)) / (slots - 1);
    const y = (value) => height - 3 - (value / most) * (height - 6);
    const d = values.map((value, at) => (value === null ? "" : `${(values[at - 1] ?? null) === null ? "M" : "L"}${x(at)} ${y(value)}h.1`));
    add(svg, "path", { class: `line-${2 * index}`, d: d.join("") });
  });
}
