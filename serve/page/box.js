// How large an image may be, and the part of it that the network is given.

import { Problem } from "./problem.js";

// As in featurize/images/limits.py.
const MAX_PIXELS = 100e6;
const MAX_SIDE = 65535;

export function requireSize(width, height) {
  if (width * height > MAX_PIXELS) throw new Problem(`${width}×${height} is more than ${MAX_PIXELS / 1e6} megapixels`);
  if (Math.max(width, height) > MAX_SIDE) throw new Problem(`${width}×${height} is more than ${MAX_SIDE} pixels on a side`);
}

// As in PreprocessSpec.box of featurize/specs.py. `model`: its description.
export function boxOf(imageWidth, imageHeight, { crop, resize }) {
  const parts = Math.round(crop * 1e6);
  const cut = (length) => Math.min(Math.floor((length * parts + 5e5) / 1e6), Math.floor((length - 1) / 2));
  let [left, top] = [cut(imageWidth), cut(imageHeight)];
  let [width, height] = [imageWidth - 2 * left, imageHeight - 2 * top];
  if (resize === "crop") {
    const side = Math.min(width, height);
    left += Math.floor((width - side) / 2);
    top += Math.floor((height - side) / 2);
    width = height = side;
  }
  return { left, top, width, height };
}
