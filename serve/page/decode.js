// From an image file to the same network input as on a server: no colour management, EXIF orientation applied, cut and resized.

import { boxOf } from "./box.js";
import { Problem } from "./problem.js";
import { squash } from "./resize.js";

const MAX_PIXELS = 100e6; // as MAX_PIXELS in featurize/images/decode.py
const CONVERT = "Save it as an 8-bit PNG or JPEG, or use a server (xserve start).";

const SEVERAL = "an animation of several frames, not one picture. Save one frame as a PNG.";

const startsWith = (bytes, text, at = 0) => [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));

// Why a file cannot be decoded in a browser, or not as on a server; null if it can.
export function rejection(bytes) {
  if (bytes.length === 0) return "the file is empty";
  if (startsWith(bytes, "DICM", 128)) return `DICOM cannot be read in a browser. ${CONVERT}`;
  if (startsWith(bytes, "II*\0") || startsWith(bytes, "MM\0*")) return `TIFF cannot be read in a browser. ${CONVERT}`;
  if (startsWith(bytes, "\x89PNG")) {
    if (bytes[24] === 16) return `16-bit PNG: browsers reduce it to 8 bits. ${CONVERT}`;
    return isAnimatedPng(bytes) ? SEVERAL : null;
  }
  if (startsWith(bytes, "\xff\xd8")) return jpegComponents(bytes) === 4 ? `CMYK JPEG (for print). ${CONVERT}` : null;
  if (startsWith(bytes, "RIFF") && startsWith(bytes, "WEBP", 8)) return isAnimatedWebp(bytes) ? SEVERAL : hasExif(bytes) ? `WebP with EXIF data: browsers ignore its orientation. ${CONVERT}` : null;
  if (startsWith(bytes, "BM")) return null;
  return "not a JPEG, PNG, BMP or WebP image";
}

// Source: RFC 9649, section 2.7: the flags of the extended file format.
const isAnimatedWebp = (bytes) => startsWith(bytes, "VP8X", 12) && (bytes[20] & 2) !== 0;
const hasExif = (bytes) => startsWith(bytes, "VP8X", 12) && (bytes[20] & 8) !== 0;

// Whether the chunk acTL, which stands before the pixels, announces several frames. Source: the PNG standard, third edition.
function isAnimatedPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length && !startsWith(bytes, "IDAT", at + 4); at += 12 + view.getUint32(at)) {
    if (startsWith(bytes, "acTL", at + 4)) return view.getUint32(at + 8) > 1;
  }
  return false;
}

// The number of colour components, from the frame header (SOF). Source: ITU-T T.81, B.1.1 and B.2.2.
function jpegComponents(bytes) {
  for (let at = 2; at + 9 < bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1];
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return bytes[at + 9];
    at += marker === 0xff ? 1 : 2 + bytes[at + 2] * 256 + bytes[at + 3];
  }
  return 0;
}

// Returns input_size · input_size · 3 RGB values for the model of this description.
export async function decode(file, model) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const reason = rejection(bytes);
  if (reason) throw new Problem(reason);
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(new Blob([bytes]), options).catch(() => {
    throw new Problem("this browser cannot decode it: it is damaged or too large");
  });
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Problem(`${width}×${height} is more than ${MAX_PIXELS / 1e6} megapixels`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const box = boxOf(width, height, model);
  const { data } = context.getImageData(box.left, box.top, box.width, box.height);
  // The server uses the colours of transparent pixels, which a canvas does not return.
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) throw new Problem(`some pixels are transparent. ${CONVERT}`);
  return squash(data, box.width, box.height, model);
}
