// One frame of a DICOM file, as stored: plain, RLE, or JPEG that the browser decodes. As featurize/images/dicom/frame.py.

import { damaged, readFragments } from "./dicom_tags.js";
import { Problem } from "./problem.js";

const ROOT = "1.2.840.10008.1.2";
const UNCOMPRESSED = "Save it uncompressed (gdcmconv --raw).";
const ADVICE = "Save it uncompressed (gdcmconv --raw), or use a server (xserve start).";
// Source: DICOM PS3.6, table A-1: ends of UIDs, and the names.
const JPEG = { ".4.50": "JPEG Baseline", ".4.51": "JPEG Extended", ".4.53": "JPEG Spectral Selection", ".4.55": "JPEG Full Progression" };
const NOT_READ = [
  [/^\.1\.99$/, "Deflated Explicit VR Little Endian"], [/^\.2$/, "Explicit VR Big Endian"], [/^\.4\.(57|70)$/, "JPEG Lossless"],
  [/^\.4\.80$/, "JPEG-LS Lossless"], [/^\.4\.81$/, "JPEG-LS Near-lossless"], [/^\.4\.9[02]$/, "JPEG 2000 Lossless"],
  [/^\.4\.9[13]$/, "JPEG 2000"], [/^\.4\.20[123]$/, "High-Throughput JPEG 2000"],
  // Neither does a server.
  [/^\.4\.11[012]$/, "JPEG XL", UNCOMPRESSED], [/^\.8\.1$/, "Deflated Image Frame Compression", UNCOMPRESSED],
  [/^\.4\.10\d(\.1)?$/, "a video format (MPEG)", "Save a frame of this video as a picture."],
];
const MOST_SCANS = 100; // as in featurize/images/jpeg_headers.py
// Says that three channels are as they are stored, so that no decoder converts them. Source: ITU-T T.872, 6.5.3.
const ADOBE_RGB = Uint8Array.of(0xff, 0xee, 0, 14, ...[..."Adobe"].map((letter) => letter.charCodeAt(0)), 0, 100, 0, 0, 0, 0, 0);

// Why files of this transfer syntax are not read here; null if they are.
export function syntaxProblem(syntax) {
  const end = syntax.startsWith(ROOT) ? syntax.slice(ROOT.length) : null;
  if (["", ".1", ".5", ...Object.keys(JPEG)].includes(end)) return null;
  const known = end === null ? undefined : NOT_READ.find(([pattern]) => pattern.test(end));
  const [, name, advice = ADVICE] = known ?? [null, `transfer syntax ${syntax.slice(0, 64)}`, UNCOMPRESSED];
  return `DICOM in ${name} cannot be read in a browser. ${advice}`;
}

// Returns {values, stored, high, ybr}: Uint8Array or Uint16Array of rows · columns · samples, without their sign.
// `decodeJpeg` returns the RGBA pixels of a JPEG file.
export async function decodeFrame(tags, syntax, layout, decodeJpeg) {
  const ybr = layout.photometric.startsWith("YBR_");
  const frame = { stored: layout.stored, high: layout.high, ybr };
  const element = tags.find("PixelData");
  if (syntax === ROOT || syntax === `${ROOT}.1`) return { ...frame, values: plain(tags, element, layout) };
  if (element.hasLength) throw damaged();
  const data = frameData(readFragments(tags.bytes, element), layout);
  if (syntax === `${ROOT}.5`) return { ...frame, values: unpackRle(data, layout) };
  return fromJpeg(data, JPEG[syntax.slice(ROOT.length)], layout, decodeJpeg);
}

function plain(tags, element, layout) {
  if (!element.hasLength) throw new Problem("DICOM with compressed pixels whose transfer syntax says that they are not compressed");
  const { rows, columns, samples, frame, frames, allocated } = layout;
  const [pixels, size, found] = [rows * columns, allocated / 8, element.end - element.begin];
  // Ultrasound devices write YBR_FULL_422 also where no colour was left out; if cut off, it is not smaller.
  const halved = frames * pixels * 2 * size;
  const is422 = layout.photometric === "YBR_FULL_422" && 2 * found < 3 * halved;
  if (is422 && found > halved + 1) throw new Problem(`DICOM pixel data are cut off: ${found} of ${(3 * halved) / 2} bytes`);
  const count = pixels * (is422 ? 2 : samples);
  const needed = count * size * (frame + 1);
  if (found < needed) throw new Problem(`DICOM pixel data are cut off: ${found} of ${needed} bytes`);
  const stored = tags.bytes.slice(element.begin + needed - count * size, element.begin + needed);
  const values = size === 1 ? stored : new Uint16Array(stored.buffer);
  const planar = samples === 3 ? tags.integer("PlanarConfiguration", 0) : 0;
  if (planar < 0 || planar > (is422 ? 0 : 1)) throw new Problem(`DICOM in ${layout.photometric} with the planar configuration ${planar}`);
  if (is422) return from422(values, pixels);
  return planar === 1 ? interleaved(values, pixels) : values;
}

// Two pixels share their colours: Y Y Cb Cr. Source: DICOM PS3.3, C.7.6.3.1.2.
function from422(values, pixels) {
  const full = new values.constructor(pixels * 3);
  for (let at = 0; at < pixels; at++) {
    const pair = (at >> 1) * 4;
    full.set([values[pair + (at & 1)], values[pair + 2], values[pair + 3]], at * 3);
  }
  return full;
}

function interleaved(planes, pixels) {
  return planes.map((_, at) => planes[(at % 3) * pixels + Math.trunc(at / 3)]);
}

// The data of one frame, of pieces of compressed frames.
function frameData({ table, pieces }, { frame, frames }) {
  if (frames === 1 && pieces.length) return joined(pieces);
  const offsets = new DataView(table.buffer, table.byteOffset, table.length);
  if (table.length >= 4 * frames) {
    const [start, end] = [frame, frame + 1].map((at) => (at < frames ? offsets.getUint32(at * 4, true) : Infinity));
    let place = 0;
    const own = pieces.filter((piece) => { const at = place; place += 8 + piece.length; return at >= start && at < end; });
    if (own.length) return joined(own);
  }
  if (pieces.length === frames) return pieces[frame];
  throw new Problem(`DICOM of ${frames} frames that does not say where each begins. Save one of them as a picture.`);
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// Source: DICOM PS3.5, annex G. A segment holds one byte of every value of a channel, the highest first.
function unpackRle(data, { rows, columns, samples, allocated }) {
  const failed = () => new Problem("DICOM in RLE Lossless cannot be decoded: damaged or cut off");
  const [size, bytes] = [rows * columns, allocated / 8];
  if (data.length < 64) throw failed();
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const count = view.getUint32(0, true);
  if (count !== samples * bytes) throw failed();
  const out = new Uint8Array(size * count);
  for (let segment = 0; segment < count; segment++) {
    let at = view.getUint32(4 + 4 * segment, true);
    const end = Math.min(segment + 1 < count ? view.getUint32(8 + 4 * segment, true) : data.length, data.length);
    const first = Math.trunc(segment / bytes) * bytes + bytes - 1 - (segment % bytes);
    for (let done = 0; done < size;) {
      if (at >= end) throw failed();
      const code = data[at++];
      const [isRun, length] = code > 128 ? [true, 257 - code] : [false, code === 128 ? 0 : code + 1];
      if (at + (isRun ? 1 : length) > end || done + length > size) throw failed();
      for (let i = 0; i < length; i++, done++) out[first + done * count] = data[isRun ? at : at + i];
      at += isRun ? 1 : length;
    }
  }
  return bytes === 1 ? out : new Uint16Array(out.buffer);
}

async function fromJpeg(data, name, layout, decodeJpeg) {
  const failed = () => new Problem(`DICOM in ${name} cannot be decoded: damaged or cut off`);
  const { jpeg, found, ybr } = readJpeg(data, failed);
  const { rows, columns, samples, signed } = layout;
  if (found.bits !== 8 || !found.isReadable) throw new Problem(`DICOM in ${name} with ${found.bits} bits per channel cannot be read in a browser. ${ADVICE}`);
  if (found.width !== columns || found.height !== rows || found.samples !== samples) {
    throw new Problem(`DICOM in ${name} holds ${found.width}×${found.height} with ${found.samples} samples per pixel, where its tags say ${columns}×${rows} with ${samples} samples`);
  }
  const { data: rgba, width, height } = await decodeJpeg(new Blob([jpeg], { type: "image/jpeg" }), failed);
  if (width !== columns || height !== rows) throw failed();
  const values = new Uint8Array(rows * columns * samples).map(samples === 1 ? (_, at) => rgba[at * 4] : (_, at) => rgba[Math.trunc(at / 3) * 4 + (at % 3)]);
  // Some encoders state the bits allocated.
  const isInside = signed || values.every((value) => value < 2 ** layout.stored);
  const stored = isInside ? Math.min(8, layout.stored) : 8;
  return { values, stored, high: stored - 1, ybr: ybr ?? layout.photometric.startsWith("YBR_") };
}

// Returns the JPEG without what makes decoders convert colours or turn the picture, and what it says of itself.
// Source: ITU-T T.81, B.1 and B.2; of the colours, read_jpeg_header in featurize/images/jpeg_headers.py.
function readJpeg(data, failed) {
  const kept = [data.subarray(0, 2)];
  let [found, jfif, adobe] = [null, false, null];
  for (let at = 2, scan = false; !scan;) {
    while (data[at] === 0xff && data[at + 1] === 0xff) at++;
    if (data[at] !== 0xff || at + 4 > data.length) throw failed();
    const [marker, length] = [data[at + 1], data[at + 2] * 256 + data[at + 3]];
    const content = data.subarray(at + 4, at + 2 + length);
    const begins = (text) => [...text].every((letter, i) => content[i] === letter.charCodeAt(0));
    if (length < 2) throw failed();
    if (marker === 0xe0 && begins("JFIF")) jfif = true;
    if (marker === 0xee && begins("Adobe") && content.length >= 12) adobe = content[11];
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      const isRgb = [6, 9, 12].map((i) => String.fromCharCode(content[i])).join("").toUpperCase() === "RGB";
      found = { bits: content[0], height: content[1] * 256 + content[2], width: content[3] * 256 + content[4], samples: content[5], isReadable: marker <= 0xc2, isRgb };
    }
    scan = marker === 0xda;
    if (scan) kept.push(data.subarray(at));
    else if (marker < 0xe0) kept.push(data.subarray(at, at + 2 + length)); // no APPn, no comments
    at += 2 + length;
  }
  if (!found) throw failed();
  let scans = 0;
  let hasEnd = false;
  for (let at = 2; (at = data.indexOf(0xff, at)) >= 0; at++) {
    if (data[at + 1] === 0xda) scans++;
    if (data[at + 1] === 0xd9 && at >= data.length - 4096) hasEnd = true;
  }
  if (!hasEnd) throw new Problem("DICOM in JPEG is cut off: the end of the data is missing");
  if (scans > MOST_SCANS) throw new Problem(`DICOM in JPEG of more than ${MOST_SCANS} scans, each over the whole image, would take too long`);
  const ybr = found.isRgb ? false : adobe !== null ? adobe !== 0 : jfif ? true : null;
  // One piece: Firefox tells the kind of a file from the first piece alone.
  return { found, ybr, jpeg: joined([kept[0], ...(found.samples === 3 ? [ADOBE_RGB] : []), ...kept.slice(1)]) };
}
