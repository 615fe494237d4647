// What is found out about an image by asking again: the least compute with the same answer, and the time saved. Knows no
// page and no URL.

export const top = (result) => result.predictions[0];

// Of `values`, from dear to cheap, the cheapest that `holds`, refined by bisection towards its cheaper neighbour; null if
// none does. A model isn't strictly monotone: this is the least found, not a proof that nothing below it would do.
export async function cheapest(values, holds, onValue, steps = 5) {
  let good = null, bad = null;
  for (const value of values) {
    if (await holds(value)) [good, bad] = [value, null];
    else bad ??= value;
    onValue();
  }
  for (let step = 0; good !== null && bad !== null && step < steps; step += 1) {
    const middle = (good + bad) / 2;
    if (await holds(middle)) good = middle;
    else bad = middle;
  }
  return good;
}

export const median = (numbers) => {
  const sorted = [...numbers].sort((a, b) => a - b), half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2;
};

// Inference times of both, alternated so that whatever disturbs one disturbs the other; null where the engine had other
// work too, because then a time isn't this image's alone.
export async function compareTimes(askFull, askHere, pairs = 5) {
  const full = [], here = [];
  for (let pair = 0; pair < pairs; pair += 1) {
    for (const [ask, times] of [[askFull, full], [askHere, here]]) {
      const { timing, batchSize, cached } = await ask();
      if (batchSize > 1 || cached) return null;
      times.push(timing.inference);
    }
  }
  return { fullMs: median(full), hereMs: median(here), pairs };
}
