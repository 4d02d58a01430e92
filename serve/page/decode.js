// From an image file to the same network input as on a server: no colour management, EXIF orientation applied, cut and resized.

import { boxOf, requireSize } from "./box.js";
import { decodeDicom } from "./dicom.js";
import { isDicom } from "./dicom_tags.js";
import { Problem } from "./problem.js";
import { squash } from "./resize.js";

const PREVIEW_SIDE = 1024; // as in serve/http/preview.py
const CONVERT = "Save it as an 8-bit PNG or JPEG, or use a server (xserve start).";

const SEVERAL = "an animation of several frames, not one picture. Save one frame as a PNG.";

const startsWith = (bytes, text, at = 0) => [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));

// Pictures that browsers read otherwise or not at all: name, how the file begins, and where.
const OTHERS = [
  ["TIFF", "II*\0"], ["TIFF", "MM\0*"], ["GIF", "GIF8"], ["JPEG 2000", "\0\0\0\x0cjP"], ["JPEG 2000", "\xff\x4f\xff\x51"],
  ["AVIF", "ftypavi", 4], ["HEIC", "ftyphei", 4], ["HEIC", "ftypmif1", 4], ["PPM", "P5\n"], ["PPM", "P6\n"],
];

// Some browsers fill what is missing with grey, without a word. As is_truncated in featurize/images/decode.py.
const ENDS = [["\xff\xd8", "\xff\xd9"], ["\x89PNG", "IEND"]];
const endsNear = (bytes, end) => String.fromCharCode(...bytes.subarray(-4096)).includes(end);

// Why a file cannot be decoded in a browser, or not as on a server; null if it can.
export function rejection(bytes) {
  if (bytes.length === 0) return "the file is empty";
  const other = OTHERS.find(([, text, at]) => startsWith(bytes, text, at));
  if (other) return `${other[0]} cannot be read in a browser. ${CONVERT}`;
  if (ENDS.some(([start, end]) => startsWith(bytes, start) && !endsNear(bytes, end))) return "cut short: the end of the picture is missing. Copy the file again.";
  if (startsWith(bytes, "\x89PNG")) {
    if (bytes[24] === 16) return `16-bit PNG: browsers reduce it to 8 bits. ${CONVERT}`;
    return isAnimatedPng(bytes) ? SEVERAL : null;
  }
  if (startsWith(bytes, "\xff\xd8")) return jpegComponents(bytes) === 4 ? `CMYK JPEG (for print). ${CONVERT}` : null;
  if (startsWith(bytes, "RIFF") && startsWith(bytes, "WEBP", 8)) return isAnimatedWebp(bytes) ? SEVERAL : hasExif(bytes) ? `WebP with EXIF data: browsers ignore its orientation. ${CONVERT}` : null;
  if (startsWith(bytes, "BM")) return null;
  return "not a JPEG, PNG, BMP, WebP or DICOM image";
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

const OPTIONS = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
const newContext = (width, height) => new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });

// Protection against fingerprinting changes what a canvas returns: predictions would be wrong without a word.
let isTrue = null;
function requireTrueCanvas() {
  isTrue ??= (() => {
    const [context, drawn] = [newContext(64, 64), new ImageData(64, 64)];
    drawn.data.forEach((_, at) => { drawn.data[at] = at % 4 === 3 ? 255 : (at * 7) % 256; });
    context.putImageData(drawn, 0, 0);
    return context.getImageData(0, 0, 64, 64).data.every((value, at) => value === drawn.data[at]);
  })();
  if (!isTrue) throw new Problem("this browser changes the pixels that a page reads (protection against fingerprinting). Allow this page to read them, or use another browser.");
}

// Returns the part of a picture that `partOf` chooses by width and height, decoded by the browser: RGBA pixels.
async function decodeHere(blob, failed, partOf) {
  requireTrueCanvas();
  const bitmap = await createImageBitmap(blob, OPTIONS).catch(() => { throw failed(); });
  const { width, height } = bitmap;
  requireSize(width, height);
  const context = newContext(width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const part = partOf(width, height);
  const { data } = context.getImageData(part.left, part.top, part.width, part.height);
  return { data, width: part.width, height: part.height };
}

const whole = (width, height) => ({ left: 0, top: 0, width, height });
const readDicom = (bytes, { frames }) => decodeDicom(bytes, frames, (blob, failed) => decodeHere(blob, failed, whole));

function cutOut({ data, width }, box) {
  const part = new Uint8ClampedArray(box.width * box.height * 4);
  for (let row = 0; row < box.height; row++) {
    const start = ((box.top + row) * width + box.left) * 4;
    part.set(data.subarray(start, start + box.width * 4), row * box.width * 4);
  }
  return part;
}

// Returns input_size · input_size · 3 RGB values for the model of this description.
export async function decode(file, model) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (isDicom(bytes)) {
    const picture = await readDicom(bytes, model);
    const box = boxOf(picture.width, picture.height, model);
    return squash(cutOut(picture, box), box.width, box.height, model);
  }
  const reason = rejection(bytes);
  if (reason) throw new Problem(reason);
  const failed = () => new Problem("this browser cannot decode it: it is damaged or too large");
  const { data, width, height } = await decodeHere(new Blob([bytes]), failed, (...size) => boxOf(...size, model));
  // The server uses the colours of transparent pixels, which a canvas does not return.
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) throw new Problem(`some pixels are transparent. ${CONVERT}`);
  return squash(data, width, height, model);
}

// Returns a PNG of a file that the browser does not show.
export async function preview(file, model) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!isDicom(bytes)) throw new Problem("no preview");
  const { data, width, height } = await readDicom(bytes, model);
  const full = newContext(width, height);
  full.putImageData(new ImageData(data, width, height), 0, 0);
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(width, height));
  const small = newContext(...[width, height].map((side) => Math.max(1, Math.round(side * scale))));
  small.imageSmoothingQuality = "high";
  small.drawImage(full.canvas, 0, 0, small.canvas.width, small.canvas.height);
  return small.canvas.convertToBlob();
}
