// The only place that talks to the service: calls, its problems in words, and the API key, which lives in memory alone.

export class Problem extends Error {
  // `status` is null if the service didn't answer at all.
  constructor(title, detail, { status = null, requestId = "", retryAfterS = 0 } = {}) {
    super(detail);
    Object.assign(this, { title, detail, status, requestId, retryAfterS });
  }
}

let key = "";
export const setKey = (value) => { key = value; };
export const hasKey = () => key !== "";
export const canBeKey = (value) => /^[\x20-\x7e\xa0-\xff]+$/.test(value); // what a header can carry

// The body of the answer as `read` (json, text, blob).
async function call(path, read, options = {}) {
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  try {
    // no-store also tells the service that an answer computed earlier won't do: this page shows what is measured now.
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.ok) return await response[read]();
    throw problem(response, await response.text());
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem("The service doesn't answer", "It may be restarting, or the network is down. The page tries again by itself.");
  }
}

function problem({ status, statusText, headers }, text) {
  const about = { status, requestId: headers.get("X-Request-Id"), retryAfterS: Number(headers.get("Retry-After")) };
  try {
    const { title, detail = "" } = JSON.parse(text);
    if (title) return new Problem(title, detail, about);
  } catch { /* a proxy's page, not the service's answer */ }
  return new Problem(`The service answered ${status}`, statusText || "It didn't say why.", about);
}

export const takesType = (type) => /^image\/(jpeg|png|webp)$/.test(type);
export const getModels = async () => (await call("v1/models", "json")).models;
export const getManifest = (name) => call(`v1/models/${encodeURIComponent(name)}`, "json");
export const getMetrics = () => call("metrics", "text");
export const getReady = () => call("readyz", "json");
export const getBlob = (path) => call(path, "blob");

// One image's answer: the result with `timing` (ms), `batchSize` and `query`, which made it.
export async function classify(blob, query, signal) {
  const parameters = new URLSearchParams({ explain: "mask", top_k: "100", ...query });
  // The bytes decide what an image is; a type that the service doesn't take would be refused before it looks at them.
  const type = takesType(blob.type) ? blob.type : "application/octet-stream";
  const options = { method: "POST", body: blob, headers: { "Content-Type": type }, signal };
  const { results: [result], timing_ms: timing, batch_size: batchSize, cached } = await call(`v1/classify?${parameters}`, "json", options);
  return { cached, ...result, timing, batchSize, query };
}
