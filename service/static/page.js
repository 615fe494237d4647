// The page: what is chosen, what is asked for it, and what shows. Everything it knows comes from the public API.

import * as api from "./api.js";
import { percent } from "./charts.js";
import { patchAt } from "./draw.js";
import { Live } from "./live.js";
import { depthOf, statesOf } from "./patches.js";
import { prepare } from "./picture.js";
import { cheapest, compareTimes, top } from "./survey.js";
import * as view from "./view.js";

const { $, say, make, words } = view;
const SAMPLES = ["fox", "maple_tree", "snake", "sunflower", "tiger", "ray", "plate", "pickup_truck"];
const POLL_MS = 2000, PLAY_MS = 600, SETTLE_MS = 500, SWEEP_POINTS = 11;
const ANY_SIZE = "best";
const BUSY = "not measured: the engine is busy with others";

const state = {
  manifest: null,
  image: null, // {blob, crop, note, name, results: its answers, by query}
  full: null, // its answer at full compute
  mode: "threshold",
  value: { threshold: 0.5, compute: 0.5 },
  size: { threshold: null, compute: ANY_SIZE },
  sure: 0, // least probability that is enough; below it the full size as well
  shown: null, // the answer on the page, always the image's
  times: null, // what was measured of it
  mark: null, // {value, ratio}: the least compute found with full compute's answer
  layer: 0,
  marked: null, // a patch
};
const live = new Live($("live"));
let survey = new AbortController(); // what the page finds out by itself; any change ends it
let opening = new AbortController(); // the image that is being opened; another one ends it
let retry = null, lost = false; // what failed last; whether the service is out of reach
let asking = false, askAgain = false, settled = 0, player = 0;

// Asking

const queryAt = (value, mode = state.mode, size = state.size[mode], sure = state.sure) =>
  ({ model: state.manifest.name, [mode]: value.toFixed(3), ...(size !== ANY_SIZE && { size }), ...(sure && { sure }) });
const fullQuery = () => queryAt(0, "threshold", state.manifest.graphs[0].size_px, 0);

// What the page measures must not be degraded by load. What the reader asks for may be, and is then called so.
const askAsItComes = (image, query, signal) => api.classify(image.blob, query, signal);

async function askExactly(image, query, signal) {
  const result = await askAsItComes(image, query, signal);
  return result.degraded ? api.classify(image.blob, { ...query, degrade: "false" }, signal) : result;
}

async function remembered(image, query, ask, signal = undefined) {
  const key = JSON.stringify(query);
  if (!image.results.has(key)) image.results.set(key, await ask(image, query, signal));
  return image.results.get(key);
}

function fail(error, name = "") {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Problem)) throw error; // ours, not the service's
  if (state.shown) view.showTimes(state.times, "not measured"); // nobody goes on with it
  if (error.status === null) lose(error);
  else view.showProblem(error, { about: words(name), canRetry: [429, 500, 503, 504].includes(error.status) });
}

// The image and the setting

async function open(source, name) {
  opening.abort(); // what was chosen last is shown, whichever answer comes last
  const { signal } = opening = new AbortController();
  retry = () => open(source, name);
  survey.abort();
  clearTimeout(settled);
  say("name", `opening ${words(name)}`);
  try {
    const prepared = await prepare(source instanceof Blob ? source : await api.getBlob(source));
    const image = { ...prepared, name, results: new Map() };
    const full = await remembered(image, fullQuery(), askExactly, signal);
    const shown = await remembered(image, queryAt(state.value[state.mode]), askAsItComes, signal);
    if (signal.aborted) return;
    Object.assign(state, { image, full, shown, mark: null, marked: null }); // together, or not at all
    $("problem").hidden = true;
    for (const button of $("samples").children) button.setAttribute("aria-pressed", button.dataset.name === name);
    render();
    await show();
  } catch (error) {
    if (!signal.aborted) fail(error, name);
  } finally {
    if (!signal.aborted) say("name", state.image ? words(state.image.name) + state.image.note : "");
  }
}

function choose(mode, value, size, sure = state.sure) {
  if (mode !== state.mode || size !== state.size[mode] || sure !== state.sure) state.mark = null; // found for another setting
  Object.assign(state, { mode, sure });
  state.value[mode] = value;
  state.size[mode] = size;
  return show();
}

// Of the slider's requests at most one is under way, and only the newest setting waits behind it.
async function show() {
  showSetting();
  survey.abort();
  clearTimeout(settled);
  if (asking || !state.image) { askAgain = asking; return; }
  asking = true;
  const { image } = state;
  try {
    const shown = await remembered(image, queryAt(state.value[state.mode]), askAsItComes);
    if (image === state.image) state.shown = shown;
    if (!askAgain) render();
    settled = setTimeout(findOut, SETTLE_MS);
  } catch (error) {
    retry = show;
    if (!askAgain) fail(error, image.name);
  }
  asking = false;
  if (askAgain) { askAgain = false; await show(); }
}

// The slider's range in this mode.
function limits() {
  const cheapestRatio = Math.min(...state.manifest.calibration.map(({ macs_ratio: ratio }) => ratio.mean));
  return state.mode === "threshold" ? [0, 1] : [Math.floor(20 * cheapestRatio) / 20, 1];
}

function showSetting() {
  const { mode, manifest } = state, value = state.value[mode], [min, max] = limits();
  const byCompute = mode === "compute", text = byCompute ? percent(value) : value.toFixed(2);
  const sizes = [...(byCompute ? [ANY_SIZE] : []), ...manifest.graphs.map(({ size_px: px }) => px).sort((one, other) => other - one)];
  Object.assign($("spend"), { min, max, value });
  $("spend").setAttribute("aria-valuetext", text);
  document.querySelector(`[value=${mode}]`).checked = true;
  say("spend-label", byCompute ? "Compute" : "Threshold");
  say("spend-value", text);
  say("end-low", byCompute ? "spends little" : "computes every patch");
  say("end-high", byCompute ? "full compute" : "skips more");
  $("size").replaceChildren(...sizes.map((px) => make("option", { value: px, textContent: px === ANY_SIZE ? "best size" : `${px} px` })));
  $("size").value = state.size[mode];
  const size = state.size[mode], fullPx = manifest.graphs[0].size_px; // of a second look
  const once = size !== ANY_SIZE && size >= fullPx, sureHere = once ? 0 : state.sure;
  $("sure").value = sureHere;
  $("sure").disabled = once;
  $("sure").title = once ? `${fullPx} px is the size of a second look: only a smaller one can come first` : "";
  for (const button of $("presets").children) {
    const { threshold, size_px: px, sure } = manifest.presets[button.textContent];
    button.setAttribute("aria-pressed", !byCompute && threshold === value && px === size && sure === sureHere);
  }
  showMark();
}

function showMark() {
  const { mark, mode } = state, [low, high] = limits();
  $("mark").hidden = !mark;
  $("mark").style.setProperty("--at", mark ? (mark.value - low) / (high - low) : 0);
  say("mark-text", mark ? `◆ least compute found with full compute's answer: ${percent(mark.ratio, 1)}, at ${mode} ${mark.value.toFixed(2)}` : "");
}

function render() {
  const { shown, full, manifest } = state;
  view.showAnswer(shown, full);
  view.showReceipt(shown, manifest.graphs[0].size_px);
  view.showTimes(state.times = null);
  view.showCurve(manifest, shown);
  showLayers();
  showSweep();
}

function showSweep() {
  const { image: { results }, mode, mark, full, shown } = state, size = state.size[mode];
  const known = [...results.values()]
    .filter(({ query }) => mode in query && (query.size ?? ANY_SIZE) === size && (query.sure ?? 0) === state.sure)
    .map((result) => ({ value: +result.query[mode], result }))
    .sort((a, b) => a.value - b.value);
  const label = mode === "threshold" ? `threshold, at ${size} px` : "compute, share of the dense model";
  const here = mode in shown.query ? +shown.query[mode] : null; // null while the other mode's answer is awaited
  view.showSweep({ results: known, full, range: limits(), here, mark: mark?.value ?? null, label });
}

// Once the setting rests: the time saved, answers over the whole slider, and the least compute that would do.
async function findOut() {
  survey = new AbortController();
  const { image, full, shown, mode } = state, { signal } = survey, [low, high] = limits();
  announce();
  try {
    const [askFull, askHere] = [fullQuery(), shown.query].map((query) => () => askExactly(image, query, signal));
    state.times = await compareTimes(askFull, askHere);
    view.showTimes(state.times, BUSY);
    const values = Array.from({ length: SWEEP_POINTS }, (_, index) => low + ((high - low) * index) / (SWEEP_POINTS - 1));
    const askAt = (value) => remembered(image, queryAt(value, mode), askExactly, signal);
    const holds = async (value) => top(await askAt(value)).index === top(full).index;
    const value = await cheapest(mode === "threshold" ? values : values.reverse(), holds, showSweep);
    const ratio = value === null ? null : (await askAt(value)).macs.ratio;
    if (signal.aborted) return;
    state.mark = value === null ? null : { value, ratio };
    showMark();
    showSweep();
    document.body.dataset.surveyed = `${image.name} ${mode} ${state.value[mode]} ${state.size[mode]}`;
  } catch (error) {
    if (signal.aborted) return;
    if ([429, 503, 504].includes(error.status)) view.showTimes(state.times, BUSY);
    else fail(error, image.name);
  }
}

function announce() {
  const { shown, full, image } = state, answer = top(shown), { mean, patches } = shown.skipped_patches;
  const same = answer.index === top(full).index ? "as at full compute" : `full compute says ${words(top(full).label)}`;
  say("announce", `${words(image.name)}: ${words(answer.label)}, ${percent(answer.probability)}, ${same}. ` +
    `${percent(shown.macs.ratio)} of the dense compute, ${mean.toFixed(0)} of ${patches} patches idle.`);
}

// Layers and patches

function showLayers() {
  const { shown, manifest: { gated_layers: gated, graphs }, image: { crop }, layer, marked } = state;
  const states = statesOf(shown.mask, gated), onlyClass = graphs[0].layer_macs[layer].per_kept === 0;
  view.showLayers({ crop, states, gated, layer, marked, onlyClass });
  view.showDepth({ depth: depthOf(shown.mask, gated), states, gated, marked });
}

function chooseLayer(layer) {
  if (!state.shown || layer < 0 || layer >= state.manifest.layers) return play(false);
  state.layer = layer;
  showLayers();
  if ($("strip").contains(document.activeElement)) $("strip").children[layer].focus();
}

function play(on = !player) {
  clearInterval(player);
  player = on ? setInterval(() => chooseLayer(state.layer + 1), PLAY_MS) : 0;
  if (on && state.layer === state.manifest.layers - 1) chooseLayer(0);
  say("play", on ? "Pause" : "Play");
}

function markPatch(patch) {
  if (patch === state.marked || !state.shown) return;
  state.marked = patch;
  showLayers();
}

function onPointer({ target, clientX, clientY }) {
  const over = target.closest?.("#stage, #depth, .tile");
  if (over && state.shown) markPatch(patchAt(over.querySelector("canvas") ?? over, clientX, clientY, state.shown.mask[0].length));
  else if (document.activeElement !== $("depth")) markPatch(null);
}

function onKey(event) {
  const { target, key } = event, inStrip = $("strip").contains(target);
  if (!state.shown || event.altKey || event.ctrlKey || event.metaKey || target.closest("input, select")) return;
  if (target === $("depth")) {
    const patches = state.shown.mask[0].length, grid = Math.sqrt(patches);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid, ArrowDown: grid }[key];
    if (!step) return;
    const next = state.marked === null ? 0 : state.marked + step;
    if (next >= 0 && next < patches) markPatch(next);
  } else if (key === " " && (inStrip || !target.closest("button, a"))) {
    play();
  } else {
    const step = { ArrowLeft: -1, ArrowRight: 1, ...(inStrip && { ArrowUp: -1, ArrowDown: 1 }) }[key];
    if (!step) return;
    play(false);
    chooseLayer(state.layer + step);
  }
  event.preventDefault();
}

// The service itself

function again() {
  $("problem").hidden = true;
  return retry?.();
}

function lose(problem) {
  if (!lost) view.showProblem(problem);
  lost = true;
  view.showStatus("down", "unreachable");
}

async function poll() {
  if (document.hidden) return;
  try {
    await readMetrics();
    await api.getReady();
    view.showStatus("ready", "ready");
    if (!lost) return;
    lost = false;
    await again();
  } catch (error) {
    if (error.status !== null) return view.showStatus("starting", error.detail);
    live.add(null);
    lose(error);
  }
}

async function readMetrics() {
  try {
    live.add(await api.getMetrics(), performance.now() / 1e3);
    view.showMetrics(true, !api.hasKey());
  } catch (error) {
    if (![401, 403, 404].includes(error.status)) throw error;
    view.showMetrics(false, false);
  }
}

const looks = (sure) => (sure ? `below ${percent(sure)}` : "never");

async function start() {
  retry = start;
  try {
    const name = new URLSearchParams(location.search).get("model") || (await api.getModels())[0].name;
    const { graphs, gated_layers: gated, presets, layers } = (state.manifest = await api.getManifest(name));
    state.size.threshold = graphs[0].size_px;
    state.layer = gated[Math.floor((2 * gated.length) / 3)]; // where all three states of a patch show
    live.gated = gated;
    view.showModel(state.manifest);
    view.buildStrip(layers, chooseLayer);
    $("presets").replaceChildren(...Object.entries(presets).map(([preset, { size_px: px, threshold, sure }]) =>
      make("button", { textContent: preset, title: `${px} px, threshold ${threshold}, ${looks(sure)}`, onclick: () => choose("threshold", threshold, px, sure) })));
    const sures = [...new Set([0, 0.5, ...Object.values(presets).map(({ sure }) => sure)])].sort();
    $("sure").replaceChildren(...sures.map((sure) => make("option", { value: sure, textContent: looks(sure) })));
    await open("static/samples/fox.png", "fox");
  } catch (error) {
    fail(error);
  }
}

// Wiring

function take([file]) {
  if (file && state.manifest) open(file, file.name);
}

function on(names, target, listener) {
  for (const name of names.split(" ")) target.addEventListener(name, listener);
}

$("samples").append(...SAMPLES.map((name) => {
  const src = `static/samples/${name}.png`;
  const button = make("button", { title: words(name), onclick: () => state.manifest && open(src, name) }, [make("img", { src, alt: words(name) })]);
  button.dataset.name = name;
  return button;
}));
on("change", $("file"), ({ target }) => { take(target.files); target.value = ""; });
on("paste", document, ({ clipboardData }) => take(clipboardData.files));
on("dragover drop dragleave", document, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", event.type === "dragover");
  if (event.type !== "drop") return;
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else view.showProblem({ title: "No image was dropped", detail: "Drop an image file; this was a link or text." });
});
on("input", $("spend"), ({ target }) => choose(state.mode, Number(target.value), state.size[state.mode]));
on("change", $("sure"), ({ target: { value } }) => choose(state.mode, state.value[state.mode], state.size[state.mode], Number(value)));
on("change", $("size"), ({ target: { value } }) => choose(state.mode, state.value[state.mode], value === ANY_SIZE ? value : Number(value)));
for (const radio of document.querySelectorAll("[name=mode]")) {
  on("change", radio, () => choose(radio.value, state.value[radio.value], state.size[radio.value]));
}
on("click", $("play"), () => play());
on("keydown", document, onKey);
on("pointermove pointerdown", document, onPointer);
on("blur", $("depth"), () => markPatch(null));
on("submit", $("key-form"), (event) => {
  event.preventDefault();
  if (!api.canBeKey($("key").value)) {
    return say("problem-detail", "This can't be a key: it has a character that a header can't carry.");
  }
  api.setKey($("key").value);
  $("key").value = "";
  again();
});
on("click", $("retry"), again);
on("click", $("dismiss"), () => { $("problem").hidden = true; });
on("resize", window, () => {
  live.draw();
  if (state.shown) { view.showCurve(state.manifest, state.shown); showSweep(); }
});

await start();
setInterval(poll, POLL_MS);
poll();
