// The page's parts: each function shows one thing, given as values. It asks nothing and keeps nothing.

import { calibratedAt, drawCurve, drawSweep, percent } from "./charts.js";
import { drawDepth, drawTile } from "./draw.js";
import { KEPT, STATES, WORDS, pathInWords } from "./patches.js";
import { top } from "./survey.js";

export const $ = (id) => document.getElementById(id);
export const say = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };
export const words = (label) => label.replaceAll("_", " ");

export function make(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// What went wrong, in words; a way to try again and the form for a key only where they help.
export function showProblem({ title, detail, status, requestId, retryAfterS }, { about = "", canRetry = false } = {}) {
  say("problem-title", about ? `${about}: ${title}` : title);
  say("problem-detail", detail + (retryAfterS ? ` Try again in ${retryAfterS} s.` : ""));
  say("problem-meta", [status && `status ${status}`, requestId && `request ${requestId}`].filter(Boolean).join(", "));
  $("key-form").hidden = status !== 401;
  $("retry").hidden = !canRetry;
  $("problem").hidden = false;
  if (status === 401) $("key").focus();
}

export function showStatus(state, text) {
  $("status").dataset.state = state;
  say("status", text);
}

// Whether the page can read the service's metrics, and whether a link, which carries no key, can show them.
export function showMetrics(here, linked) {
  $("live-note").hidden = !here;
  $("live-elsewhere").hidden = here;
  $("metrics").hidden = !linked;
}

export function showModel({ name, version, architecture, layers, labels }) {
  say("model", `${name} · ${architecture} · ${layers} layers, ${labels.length} labels · ${version}`);
}

// A tile for each layer; `onChoose(layer)` when one is chosen.
export function buildStrip(layers, onChoose) {
  $("strip").replaceChildren(...Array.from({ length: layers }, (_, layer) => {
    const parts = [make("canvas", { width: 224, height: 224 }), make("span", { className: "count" }), make("i", { className: "share" })];
    const tile = make("button", { className: "tile", onclick: () => onChoose(layer) }, parts);
    tile.setAttribute("role", "radio");
    return tile;
  }));
}

export function showLayers({ crop, states, gated, layer, marked, onlyClass }) {
  [...$("strip").children].forEach((tile, index) => {
    const patches = states[index].length, hasGate = gated.includes(index);
    const kept = states[index].filter((state) => state === KEPT).length;
    const count = hasGate ? `${kept} of ${patches}` : "no gate";
    drawTile(tile.querySelector("canvas"), crop, states[index], marked);
    tile.querySelector(".count").replaceChildren(make("b", { textContent: index }), count);
    tile.querySelector(".share").style.setProperty("--share", kept / patches);
    tile.setAttribute("aria-label", `Layer ${index}, ${count}${hasGate ? " patches computed" : ""}`);
    tile.setAttribute("aria-checked", index === layer);
    tile.classList.toggle("ungated", !hasGate);
    tile.tabIndex = index === layer ? 0 : -1;
  });
  drawTile($("stage"), crop, states[layer], marked);
  const counts = WORDS.map((word, state) => [states[layer].filter((one) => one === state).length, word]);
  const ungated = onlyClass ? "No gate: only the CLS token is computed; all patches still give it keys and values." : "No gate: every patch is computed.";
  say("stage-title", `Layer ${layer}`);
  say("stage-note", gated.includes(layer) ? counts.filter(([count]) => count).map((pair) => pair.join(" ")).join("; ") : ungated);
}

export function showDepth({ depth, states, gated, marked }) {
  drawDepth($("depth"), depth, gated.length, marked);
  say("depth-max", `${gated.length} layers`);
  const chosen = marked !== null && marked < depth.length;
  say("path", chosen ? pathInWords(states, gated, marked) : "Point at a patch, or step over the map with arrow keys, to see its path.");
  $("cells").replaceChildren(...(chosen ? states : []).map((layer, index) =>
    make("i", { className: gated.includes(index) ? STATES[layer[marked]] : "none", textContent: index })));
}

// The five best labels here and what full compute gives them.
export function showAnswer(here, full) {
  const first = top(here), wanted = top(full), same = first.index === wanted.index;
  $("bars").replaceChildren(...here.predictions.slice(0, 5).map(({ index, label, probability }) => {
    const other = full.predictions.find((one) => one.index === index)?.probability;
    const cells = [make("th", { scope: "row", textContent: words(label) }), bar(probability, "bar here"), bar(other, "bar")];
    return make("tr", { className: index === wanted.index ? "winner" : "" }, cells);
  }));
  say("answer", words(first.label));
  say("answer-note", `${percent(first.probability, 1)}, ${same ? "✓ same as at full compute" : `✗ full compute says ${words(wanted.label)}`}`);
  $("answer-note").className = `small ${same ? "good" : "bad"}`;
  $("degraded").hidden = !here.degraded;
  say("degraded", `The service is busy and computed less than asked for this answer: ${here.size_px} px at threshold ${here.threshold.toFixed(2)}.`);
}

function bar(probability, className) {
  const drawn = make("span", { className });
  drawn.style.setProperty("--share", probability ?? 0);
  return make("td", {}, [make("div", {}, [drawn, probability === undefined ? "–" : percent(probability, 1)])]);
}

export function showReceipt({ macs: { used, dense, ratio }, skipped_patches: skipped, size_px: sizePx, threshold, first_look: first }, fullPx) {
  const giga = (macs) => (macs / 1e9).toFixed(2);
  const reason = first ? "first look" : sizePx > fullPx ? "larger input" : "gates";
  const saved = ratio <= 1 ? `${percent(1 - ratio, 1)} saved` : `${percent(ratio - 1, 1)} more, for the ${reason}`;
  const before = first ? `; ${first.size_px} px came first: ${words(first.prediction.label)}, ${percent(first.prediction.probability)}` : "";
  say("here-title", `At ${threshold.toFixed(2)}, ${sizePx} px`);
  say("macs", percent(ratio, 1));
  say("macs-note", `${saved}, ${giga(used)} of ${giga(dense)} GMACs${before}`);
  say("patches", `${skipped.mean.toFixed(1)} of ${skipped.patches}`);
  say("patches-note", `mean of the gated layers, ${sizePx} px input`);
}

// `times` of compareTimes; null while there are none, and then why.
export function showTimes(times, why = "measuring") {
  say("time", times ? `${times.hereMs.toFixed(1)} ms` : "–");
  if (!times) return say("time-note", why);
  const saved = 1 - times.hereMs / times.fullMs;
  say("time-note", `${percent(Math.abs(saved))} ${saved >= 0 ? "less" : "more"} than full compute's ${times.fullMs.toFixed(1)} ms`);
}

export function showCurve(manifest, shown) {
  const { here, text } = onCurve(manifest, shown);
  drawCurve($("curve"), manifest.calibration, here);
  say("curve-note", text);
  $("curve").setAttribute("aria-label", `Accuracy against compute, a line for each input size. ${text}`);
}

// Where an answer is on the curve, which is of one look, or beside it, where the manifest knows what two looks cost.
function onCurve({ calibration, second_looks: looks = [], graphs }, shown) {
  const { query, size_px: sizePx, threshold, macs: { ratio }, first_look: first, degraded } = shown;
  const firstPx = first?.size_px ?? sizePx, againPx = graphs[0].size_px, at = threshold.toFixed(2);
  const twice = query.sure > 0 && firstPx < againPx;
  const row = twice && threshold === 0 && !degraded &&
    looks.find((one) => one.size_px === firstPx && one.again_px === againPx && one.sure === query.sure);
  const held = (accuracy) => `Accuracy there, on held-out images: ${percent(accuracy, 1)}.`;
  const costs = `This image costs ${percent(ratio, 1)} at`;
  if (row) {
    const text = `${costs} ${firstPx} px, and below ${percent(row.sure)} again at ${againPx} px; the average image ` +
      `(ring) ${percent(row.macs_ratio, 1)}, for ${percent(row.looked_again)} are looked at again. ${held(row.accuracy)}`;
    return { here: { accuracy: row.accuracy, spread: { mean: row.macs_ratio }, ratio }, text };
  }
  const point = calibratedAt(calibration, sizePx, threshold);
  const beyond = `Threshold ${at} lies beyond the calibration table, which ends where accuracy has fallen off.`;
  if (!point) return { here: null, text: beyond };
  const { mean, p10, p90 } = point.spread;
  const text = `${costs} ${sizePx} px and threshold ${at}; the average image (ring) ${percent(mean, 1)}, ` +
    `the middle 80 % from ${percent(p10)} to ${percent(p90)}. ${held(point.accuracy)}`;
  return { here: { ...point, sizePx, ratio }, text: twice ? `${text} The curve is of one look only.` : text };
}

// Lines of the labels that matter somewhere on the slider: full compute's answer first, then by their best.
export function showSweep({ results, full, ...rest }) {
  const best = new Map();
  for (const { result } of results) {
    for (const one of result.predictions.slice(0, 5)) {
      if (one.probability > (best.get(one.index)?.probability ?? 0.05)) best.set(one.index, one);
    }
  }
  best.delete(top(full).index);
  const shown = [top(full), ...[...best.values()].sort((a, b) => b.probability - a.probability).slice(0, 3)];
  const lines = shown.map(({ index }) =>
    results.map(({ value, result }) => [value, result.predictions.find((one) => one.index === index)?.probability ?? 0]));
  drawSweep($("sweep"), { lines, ...rest });
  const names = shown.map(({ label }) => words(label));
  $("sweep").setAttribute("aria-label", `Probability of ${names.join(", ")} over the ${rest.label}`);
  $("sweep-legend").replaceChildren(...names.map((name, index) => make("li", {}, [make("i", { className: `line-${index}` }), name])));
}
