// Pure: Prometheus's text format, and what two scrapes say about the time between them.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

const number = (text) => (text === "+Inf" ? Infinity : Number(text));

// name -> [{labels, value}]
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: number(match[3]) });
  }
  return samples;
}

export const total = (scrape, name, where = () => true) =>
  (scrape.get(name) ?? []).filter(({ labels }) => where(labels)).reduce((sum, { value }) => sum + value, 0);

// By how much a counter grew; after a restart of the service, what it has counted since.
export function growth(before, after, name, where) {
  const [earlier, later] = [total(before, name, where), total(after, name, where)];
  return later >= earlier ? later - earlier : later;
}

// A histogram of the time between two scrapes: cumulative [bound, count] in rising order, their count and sum.
export function histogramBetween(before, after, name) {
  const earlier = total(after, `${name}_count`) < total(before, `${name}_count`) ? new Map() : before; // restarted
  const grown = (part, where) => total(after, name + part, where) - total(earlier, name + part, where);
  const bounds = new Set((after.get(`${name}_bucket`) ?? []).map(({ labels }) => labels.le));
  const buckets = [...bounds].map((bound) => [number(bound), grown("_bucket", ({ le }) => le === bound)]);
  return { buckets, count: grown("_count"), sum: grown("_sum") };
}

export const mean = ({ count, sum }) => (count > 0 ? sum / count : null);

// As PromQL's histogram_quantile: linear within the bucket; null if nothing was observed.
export function quantile({ buckets, count }, share) {
  if (!(count > 0)) return null;
  const rank = share * count;
  const index = buckets.findIndex(([, cumulative]) => cumulative >= rank);
  const [bound, cumulative] = buckets[index];
  const [lowerBound, lower] = index > 0 ? buckets[index - 1] : [0, 0];
  if (bound === Infinity) return lowerBound;
  return cumulative === lower ? bound : lowerBound + ((bound - lowerBound) * (rank - lower)) / (cumulative - lower);
}
