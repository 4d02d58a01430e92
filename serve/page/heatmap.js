// A heatmap as a picture, as in serve/inference/heatmap_png.py: transparent where the value is 0, opaque where it is highest.

import { COLOURS } from "./colours.js";
import { BICUBIC, weightsOf } from "./resize.js";

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
  const at = strength * (COLOURS.length - 1);
  const [low, high] = [Math.floor(at), Math.ceil(at)].map((step) => parseInt(COLOURS[step], 16));
  return [16, 8, 0].map((bits) => mixed((low >> bits) & 255, (high >> bits) & 255, at % 1));
}

const mixed = (low, high, share) => low + share * (high - low);

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
