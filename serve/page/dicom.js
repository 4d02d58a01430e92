// DICOM files as pictures, as featurize/images/dicom shows them: layout, windows, tables and palettes.

import { requireSize } from "./box.js";
import { decodeFrame, syntaxProblem } from "./dicom_frame.js";
import { readTags } from "./dicom_tags.js";
import { Problem } from "./problem.js";

const GREY = ["MONOCHROME1", "MONOCHROME2"];
const COLOUR = ["RGB", "YBR_FULL", "YBR_FULL_422"];
// Source: DICOM PS3.6, annex A: objects with pixels that are no pictures.
const NOT_IMAGES = {
  "1.2.840.10008.1.3.10": "DICOMDIR (index of files)", "1.2.840.10008.5.1.4.1.1.104.1": "PDF document",
  "1.2.840.10008.5.1.4.1.1.66.4": "segmentation", "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
  "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
};
const SMALLEST = 2.2250738585072014e-308;

// Returns {data, width, height}: RGBA pixels. `frames`: which of several is read, as in the model's description.
export async function decodeDicom(bytes, frames, decodeJpeg) {
  const { tags, syntax } = readTags(bytes);
  const problem = syntaxProblem(syntax);
  if (problem) throw new Problem(problem);
  const layout = layoutOf(tags, frames);
  const frame = await decodeFrame(tags, syntax, layout, decodeJpeg);
  const data = new Uint8ClampedArray(layout.rows * layout.columns * 4).fill(255);
  const show = GREY.includes(layout.photometric) ? showGrey : layout.photometric === "PALETTE COLOR" ? showPalette : showColour;
  show(frame, tags, layout, data);
  return { data, width: layout.columns, height: layout.rows };
}

function layoutOf(tags, frames) {
  const kind = tags.text("SOPClassUID") || tags.text("MediaStorageSOPClassUID");
  if (Object.hasOwn(NOT_IMAGES, kind)) throw new Problem(`not an image: ${NOT_IMAGES[kind]}`);
  if (tags.find("FloatPixelData") || tags.find("DoubleFloatPixelData")) throw new Problem("DICOM with floating-point values cannot be read in a browser. Use a server (xserve start).");
  if (!tags.find("PixelData")) throw new Problem("DICOM file without an image: it has no pixel data, or is cut off");
  const [rows, columns] = [tags.integer("Rows"), tags.integer("Columns")];
  if (rows < 1 || columns < 1) throw new Problem(`DICOM image of ${columns}×${rows} pixels`);
  requireSize(columns, rows);
  const photometric = tags.text("PhotometricInterpretation").toUpperCase();
  if (!photometric) throw new Problem("DICOM file without the tag PhotometricInterpretation, which an image must have");
  if (![...GREY, ...COLOUR, "PALETTE COLOR"].includes(photometric)) throw new Problem(`DICOM in ${photometric.slice(0, 40)} cannot be read in a browser`);
  const samples = COLOUR.includes(photometric) ? 3 : 1;
  const found = tags.integer("SamplesPerPixel", samples);
  if (found !== samples) throw new Problem(`DICOM in ${photometric} with ${found} samples per pixel, which must be ${samples}`);
  const count = Math.max(1, tags.integer("NumberOfFrames", 1));
  if (count > 1 && frames === "refuse") throw new Problem(`${count} frames, not one picture. Save one of them as a picture.`);
  const allocated = tags.integer("BitsAllocated");
  const stored = tags.integer("BitsStored", allocated);
  if (stored < 1 || stored > allocated) throw new Problem(`DICOM with ${stored} bits stored in ${allocated}`);
  if (![8, 16].includes(allocated)) throw new Problem(`DICOM with ${stored} bits stored in ${allocated} cannot be read in a browser, only 8 and 16. Use a server (xserve start).`);
  const high = tags.integer("HighBit", stored - 1);
  const layout = {
    rows, columns, samples, allocated, stored, photometric, frames: count, frame: frames === "middle" ? Math.floor(count / 2) : 0,
    high: high >= stored - 1 && high < allocated ? high : stored - 1,
    signed: samples === 1 && tags.integer("PixelRepresentation") !== 0,
  };
  // An enhanced file has rescaling and window of each frame elsewhere.
  const groups = [tags.items("PerFrameFunctionalGroupsSequence")[layout.frame], tags.items("SharedFunctionalGroupsSequence")[0]];
  for (const group of groups.filter(Boolean)) {
    for (const name of ["PixelValueTransformationSequence", "FrameVOILUTSequence"]) {
      group.items(name).slice(0, 1).forEach((item) => tags.complete(item));
    }
  }
  return layout;
}

// Only the bits that count, with their sign; other bits may hold anything.
const bitsOf = ({ stored, high }, signed) => (value) => {
  const shifted = value << (31 - high);
  return signed ? shifted >> (32 - stored) : shifted >>> (32 - stored);
};

// To the nearest, halves to the even one, as numpy does. Source: IEEE 754, by adding and subtracting 1.5 · 2⁵².
const rounded = (value) => value + 6755399441055744 - 6755399441055744;
const within = (value) => Math.min(Math.max(value, 0), 1);

// Values have 8 or 16 bits, so that every formula runs once for each value, and not for each pixel.
function showGrey(frame, tags, layout, data) {
  const [rescale, voi, isPadding, extract] = [modalityOf(tags, layout), voiOf(tags, layout), paddingOf(tags, layout), bitsOf(frame, layout.signed)];
  const bits = frame.values.BYTES_PER_ELEMENT * 8;
  const signedOf = (value) => (layout.signed ? (value << (32 - bits)) >> (32 - bits) : value);
  const isBackground = (value) => isPadding(signedOf(value)) || isPadding(extract(value));
  const show = voi ?? fullRange(frame.values, 1 << bits, (value) => (isBackground(value) ? NaN : rescale(extract(value))));
  const levels = Uint8Array.from({ length: 1 << bits }, (_, value) => {
    if (isBackground(value)) return 0;
    const share = within(show(rescale(extract(value))) || 0);
    return rounded((layout.photometric === "MONOCHROME1" ? 1 - share : share) * 255);
  });
  frame.values.forEach((value, at) => { data[at * 4] = data[at * 4 + 1] = data[at * 4 + 2] = levels[value]; });
}

// Without a window, the darkest and lightest values that are no padding become black and white.
function fullRange(values, count, rescaled) {
  const present = new Uint8Array(count);
  for (const value of values) present[value] = 1;
  let [black, white] = [Infinity, -Infinity];
  present.forEach((isPresent, value) => {
    const found = isPresent ? rescaled(value) : NaN;
    if (found < black) black = found;
    if (found > white) white = found;
  });
  const span = white > black ? white - black : Infinity;
  return (value) => (value - black) / span;
}

function modalityOf(tags, layout) {
  const item = tableItem(tags, "ModalityLUTSequence");
  if (item) return tableOf(item, "LUT", layout.signed).find;
  const [[slope], [intercept]] = [tags.numbers("RescaleSlope"), tags.numbers("RescaleIntercept")];
  if (!slope || intercept === undefined) return (value) => value;
  if (!Number.isFinite(slope * 2 ** 64)) throw new Problem(`DICOM tag RescaleSlope is out of range: ${slope}`);
  return (value) => value * slope + intercept;
}

// The file's mapping to 0 (black) … 1 (white): its VOI table, else its first usable window, else null.
function voiOf(tags, layout) {
  const item = tableItem(tags, "VOILUTSequence");
  if (item) {
    const table = tableOf(item, "LUT", layout.signed || tags.numbers("RescaleIntercept").some((value) => value < 0));
    return (value) => table.find(value) / table.white;
  }
  const kind = (tags.text("VOILUTFunction") || "LINEAR").toUpperCase();
  if (!["LINEAR", "LINEAR_EXACT", "SIGMOID"].includes(kind)) throw new Problem(`DICOM window of the unknown form ${kind.slice(0, 40)}: LINEAR, LINEAR_EXACT and SIGMOID are read`);
  const [centers, widths] = [tags.numbers("WindowCenter", NaN), tags.numbers("WindowWidth", NaN)];
  const at = centers.findIndex((center, i) => !Number.isNaN(center) && widths[i] >= (kind === "LINEAR" ? 1 : SMALLEST));
  return at < 0 ? null : windowOf(kind, centers[at], widths[at]);
}

// Source: DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.
function windowOf(kind, center, width) {
  if (kind === "SIGMOID") return (value) => 1 / (1 + Math.exp(Math.min(Math.max((-4 * (value - center)) / width, -500), 500)));
  if (kind === "LINEAR") [center, width] = [center - 0.5, width - 1];
  return width === 0 ? (value) => Number(value > center) : (value) => (value - center) / width + 0.5;
}

const tableItem = (tags, name) => tags.items(name).slice(0, 1).find((item) => item.content("LUTData").length > 0);

// Returns {find(value), white}. `negative`: values may be below zero. Source: DICOM PS3.3, C.11.1.1.1 and C.7.6.3.1.5.
function tableOf(item, name, negative) {
  const [described, content] = [item.numbers(`${name}Descriptor`).map(Math.trunc), item.content(`${name}Data`)];
  if (described.length !== 3 || !content.length || described[2] < 1 || described[2] > 16) {
    throw new Problem(`DICOM lookup table ${name}Data without entries or a usable ${name}Descriptor`);
  }
  const count = ((described[0] + 65536) % 65536) || 65536;
  const first = negative && described[1] > 32767 ? described[1] - 65536 : described[1];
  const words = new Uint8Array(content.length + (content.length % 2));
  words.set(content);
  const whole = new Uint16Array(words.buffer);
  const entries = (2 * whole.length <= count + 1 ? words : whole).subarray(0, count); // two entries of 8 bits may be in a word
  const white = entries.reduce((most, entry) => Math.max(most, entry), 2 ** described[2] - 1);
  return { find: (value) => entries[Math.min(Math.max(rounded(value) - first, 0), entries.length - 1)], white };
}

// A negative padding value may be written as an unsigned number.
function paddingOf(tags, { allocated, signed }) {
  const value = tags.numbers("PixelPaddingValue").slice(0, 1);
  if (!value.length) return () => false;
  const half = 2 ** (allocated - 1);
  const wrapped = (end) => ((((end + half) % (2 * half)) + 2 * half) % (2 * half)) - half;
  const ends = [...value, ...tags.numbers("PixelPaddingRangeLimit").slice(0, 1)].map((end) => (signed ? wrapped(end) : end < 0 ? end + 2 * half : end));
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  return (found) => found >= low && found <= high;
}

function showPalette(frame, tags, layout, data) {
  if (tags.find("SegmentedRedPaletteColorLookupTableData")) throw new Problem("DICOM with a segmented palette cannot be read in a browser. Use a server (xserve start).");
  const extract = bitsOf(frame, layout.signed);
  ["Red", "Green", "Blue"].forEach((name, channel) => {
    const table = tableOf(tags, `${name}PaletteColorLookupTable`, layout.signed);
    const levels = Uint8Array.from({ length: 1 << (8 * frame.values.BYTES_PER_ELEMENT) }, (_, value) => rounded((table.find(extract(value)) / table.white) * 255));
    frame.values.forEach((value, at) => { data[at * 4 + channel] = levels[value]; });
  });
}

function showColour(frame, tags, layout, data) {
  const [white, extract] = [2 ** frame.stored - 1, bitsOf(frame, false)];
  const is8 = frame.stored === 8 && frame.values.BYTES_PER_ELEMENT === 1;
  const level = (value) => (is8 ? value : Math.trunc((extract(value) * 255 + Math.trunc(white / 2)) / white));
  for (let at = 0; at < layout.rows * layout.columns; at++) {
    const channels = [0, 1, 2].map((channel) => level(frame.values[at * 3 + channel]));
    data.set(frame.ybr ? toRgb(...channels) : channels, at * 4);
  }
}

// Source: Pillow, src/libImaging/ConvertYCbCr.c: six bits of fraction, cut off.
const fraction = (factor) => Int32Array.from({ length: 256 }, (_, value) => Math.trunc((value - 128) * factor * 64 + 0.5));
const [RED, GREEN_CB, GREEN_CR, BLUE] = [1.402, -0.34414, -0.71414, 1.772].map(fraction);
const toRgb = (y, cb, cr) => [y + (RED[cr] >> 6), y + ((GREEN_CB[cb] + GREEN_CR[cr]) >> 6), y + (BLUE[cb] >> 6)];
