// The service's own numbers: small multiples from the differences between scrapes of /metrics.

import { drawSpark, percent } from "./charts.js";
import { growth, histogramBetween, mean, parse, quantile, total } from "./prometheus.js";
import { make } from "./view.js";

const SLOTS = 60, WINDOW = 5; // scrapes shown, and scrapes over which a rate is taken
const ms = (seconds) => (1e3 * seconds).toFixed(seconds < 0.01 ? 1 : 0);

// id, name, unit, how the newest values are said.
const PANELS = [
  ["rate", "Requests", "/s", (rate) => rate.toFixed(1)],
  ["latency", "Latency p50, p99", "ms", (p50, p99) => `${ms(p50)}, ${ms(p99)}`],
  ["queue", "Queue delay", "ms", ms],
  ["batch", "Batch size", "images", (size) => size.toFixed(1)],
  ["skip", "Patches skipped", "", (share) => percent(share)],
  ["degradation", "Degradation", "of 1", (level) => level.toFixed(2)],
];

// What happened between two scrapes, `elapsedS` apart; null where nothing did.
export function observe(before, after, elapsedS, gated) {
  const between = (name) => histogramBetween(before, after, `skipvit_${name}`);
  const counted = (name) => growth(before, after, `skipvit_${name}`, ({ layer }) => layer === undefined || gated.includes(Number(layer)));
  const latency = between("request_duration_seconds"), patches = counted("patches_total");
  return {
    rate: [counted("requests_total") / elapsedS],
    latency: [quantile(latency, 0.5), quantile(latency, 0.99)],
    queue: [mean(between("queue_duration_seconds"))],
    batch: [mean(between("batch_size"))],
    skip: [patches ? counted("skipped_patches_total") / patches : null],
    degradation: [total(after, "skipvit_degradation_level")],
  };
}

export class Live {
  gated = [];
  #scrapes = [];
  #history = [];
  #panels = {};

  constructor(root) {
    for (const [id, name] of PANELS) {
      const value = make("b", { textContent: "–" });
      const chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      chart.setAttribute("aria-hidden", "true"); // the number above it says it
      root.append(make("figure", { id: `live-${id}` }, [make("figcaption", { textContent: name }), value, chart]));
      this.#panels[id] = { value, chart };
    }
  }

  // Take a scrape's text, read at `nowS`; null says that the service didn't answer, and leaves a gap.
  add(text, nowS) {
    if (text === null) this.#scrapes = [];
    else this.#scrapes = [...this.#scrapes.slice(-WINDOW), { scrape: parse(text), nowS }];
    const first = this.#scrapes[0], last = this.#scrapes.at(-1);
    const seen = this.#scrapes.length > 1 ? observe(first.scrape, last.scrape, last.nowS - first.nowS, this.gated) : {};
    this.#history = [...this.#history, seen].slice(-SLOTS);
    this.draw();
  }

  draw() {
    for (const [id, , unit, said] of PANELS) {
      const { value, chart } = this.#panels[id];
      const newest = this.#history.at(-1)?.[id];
      value.replaceChildren(...(newest && newest[0] !== null ? [said(...newest), make("small", { textContent: ` ${unit}` })] : ["–"]));
      const lines = id === "latency" ? [0, 1] : [0];
      drawSpark(chart, lines.map((line) => this.#history.map((point) => point[id]?.[line] ?? null)), SLOTS);
    }
  }
}
