// A heatmap as a picture, as in serve/inference/heatmap_png.py: transparent where the value is 0, opaque red where it is highest.

import { BICUBIC, weightsOf } from "./resize.js";

const STOPS = [0, 0.35, 0.7, 1];
const COLOURS = [[40, 70, 200], [40, 190, 210], [250, 215, 60], [215, 30, 30]];

// Resizes rows of `width` numbers to `side` numbers and transposes the result: applied twice, it resizes both axes.
function resizeAndTranspose(levels, height, width, side) {
  const transposed = new Float32Array(side * height);
  weightsOf(width, side, BICUBIC).forEach(({ first, weights }, column) => {
    for (let row = 0; row < height; row++) {
      transposed[column * height + row] = weights.reduce((sum, weight, i) => sum + weight * levels[row * width + first + i], 0);
    }
  });
  return transposed;
}

function colourOf(strength) {
  const above = STOPS.findIndex((stop, at) => at > 0 && strength <= stop);
  const share = (strength - STOPS[above - 1]) / (STOPS[above] - STOPS[above - 1]);
  return COLOURS[above].map((high, channel) => COLOURS[above - 1][channel] + share * (high - COLOURS[above - 1][channel]));
}

// Returns a PNG, `side` pixels square. `levels`: height · width numbers, 0 or more.
export async function drawHeatmap({ levels, height, width }, side) {
  const clean = Float32Array.from(levels, (level) => (Number.isFinite(level) ? Math.max(level, 0) : 0));
  const highest = clean.reduce((best, level) => Math.max(best, level), 0) || 1;
  const fine = resizeAndTranspose(resizeAndTranspose(clean.map((level) => level / highest), height, width, side), side, height, side);
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(side, side);
  fine.forEach((level, at) => {
    const strength = Math.min(Math.max(level, 0), 1);
    picture.data.set([...colourOf(strength), strength * 255], at * 4);
  });
  context.putImageData(picture, 0, 0);
  return canvas.convertToBlob();
}
