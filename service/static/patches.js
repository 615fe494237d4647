// Pure: what a mask [layers][patches] (1 = computed) says about each patch. Layers without a gate compute every patch
// and so say nothing.

export const KEPT = 0, AGAIN = 1, GONE = 2;
export const WORDS = ["computed", "idle, computed again later", "idle from here on"];
export const STATES = ["kept", "again", "gone"]; // names of styles

export function statesOf(mask, gated) {
  const states = mask.map((layer) => new Uint8Array(layer.length));
  const later = new Uint8Array(mask[0].length); // computed by a gated layer after this one
  for (const layer of [...gated].sort((a, b) => b - a)) {
    mask[layer].forEach((kept, patch) => {
      states[layer][patch] = kept ? KEPT : later[patch] ? AGAIN : GONE;
      later[patch] |= kept;
    });
  }
  return states;
}

// How many gated layers computed each patch.
export const depthOf = (mask, gated) => mask[0].map((_, patch) => gated.filter((layer) => mask[layer][patch]).length);

// A patch's path, layers in runs: "Row 1, column 2: computed in 8 of 11 gated layers; idle in 5, 9–10."
export function pathInWords(states, gated, patch) {
  const grid = Math.sqrt(states[0].length);
  const idle = gated.filter((layer) => states[layer][patch] !== KEPT);
  const runs = [];
  for (const layer of idle) {
    if (runs.at(-1)?.at(-1) === layer - 1) runs.at(-1).push(layer);
    else runs.push([layer]);
  }
  const said = runs.map((run) => (run.length > 1 ? `${run[0]}–${run.at(-1)}` : run[0])).join(", ");
  return `Row ${Math.floor(patch / grid) + 1}, column ${(patch % grid) + 1}: computed in ${gated.length - idle.length} of ` +
    `${gated.length} gated layers${said && `; idle in ${said}`}.`;
}
