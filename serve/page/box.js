// The part of an image that the network is given, as in PreprocessSpec.box of featurize/specs.py. `model`: its description.
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
