// Canvas: the image with its idle patches, and the depth map.

import { AGAIN, GONE } from "./patches.js";

const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const PAINT = { [AGAIN]: "rgb(122 32 135 / 0.7)", [GONE]: "#000" };

export function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const channels = VIRIDIS[below].map((low, index) => Math.round(low + (VIRIDIS[below + 1][index] - low) * (at - below)));
  return `rgb(${channels.join(" ")})`;
}

export function drawTile(canvas, crop, states, marked = null) {
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (crop) pen.drawImage(crop, 0, 0, canvas.width, canvas.height);
  eachPatch(canvas, states.length, (patch, x, y, w, h) => {
    const paint = PAINT[states[patch]];
    if (!paint) return;
    pen.fillStyle = paint;
    pen.fillRect(x, y, w, h);
  });
  outline(canvas, states.length, marked);
}

export function drawDepth(canvas, depth, most, marked = null) {
  const pen = canvas.getContext("2d");
  eachPatch(canvas, depth.length, (patch, x, y, w, h) => {
    pen.fillStyle = viridis(depth[patch] / most);
    pen.fillRect(x, y, w, h);
  });
  outline(canvas, depth.length, marked);
}

// The patch under a pointer, or null outside.
export function patchAt(canvas, clientX, clientY, patches) {
  const grid = Math.sqrt(patches);
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((clientX - box.left) / box.width) * grid);
  const row = Math.floor(((clientY - box.top) / box.height) * grid);
  return row >= 0 && column >= 0 && row < grid && column < grid ? row * grid + column : null;
}

function eachPatch(canvas, patches, paint) {
  const grid = Math.sqrt(patches);
  const edge = (index) => Math.round((index * canvas.width) / grid); // whole pixels: no seams between patches
  for (let patch = 0; patch < patches; patch += 1) {
    const [row, column] = [Math.floor(patch / grid), patch % grid];
    paint(patch, edge(column), edge(row), edge(column + 1) - edge(column), edge(row + 1) - edge(row));
  }
}

function outline(canvas, patches, marked) {
  if (marked === null || marked >= patches) return;
  const pen = canvas.getContext("2d");
  const line = Math.max(2, canvas.width / 110);
  eachPatch(canvas, patches, (patch, x, y, w, h) => {
    if (patch !== marked) return;
    for (const [colour, width] of [["#000", 2 * line], ["#fff", line]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.strokeRect(x + line, y + line, w - 2 * line, h - 2 * line);
    }
  });
}
