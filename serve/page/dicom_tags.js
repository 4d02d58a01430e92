// The tags of a DICOM file, as pydicom reads them; no pixels. Source: DICOM PS3.5, 7.1 to 7.5, and PS3.6.

import { Problem } from "./problem.js";

const UNDEFINED = 0xffffffff; // a length
const [ITEM, ITEM_END, SEQUENCE_END] = [0xfffee000, 0xfffee00d, 0xfffee0dd];
const MOST_NESTED = 32;
const VRS = new Set("AEASATCSDADSDTFDFLISLOLTOBODOFOLOVOWPNSHSLSQSSSTSVTMUCUIULUNURUSUTUV".match(/../g));
const LONG_VRS = new Set(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]);
const FIRST_GROUPS = [0x0002, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028];

// The kind of value counts where the file does not state one.
const TAGS = {
  MediaStorageSOPClassUID: [0x00020002, "UI"], TransferSyntaxUID: [0x00020010, "UI"], SOPClassUID: [0x00080016, "UI"],
  SamplesPerPixel: [0x00280002, "US"], PhotometricInterpretation: [0x00280004, "CS"], PlanarConfiguration: [0x00280006, "US"],
  NumberOfFrames: [0x00280008, "IS"], Rows: [0x00280010, "US"], Columns: [0x00280011, "US"], BitsAllocated: [0x00280100, "US"],
  BitsStored: [0x00280101, "US"], HighBit: [0x00280102, "US"], PixelRepresentation: [0x00280103, "US"],
  PixelPaddingValue: [0x00280120, "US"], PixelPaddingRangeLimit: [0x00280121, "US"], WindowCenter: [0x00281050, "DS"],
  WindowWidth: [0x00281051, "DS"], RescaleIntercept: [0x00281052, "DS"], RescaleSlope: [0x00281053, "DS"],
  VOILUTFunction: [0x00281056, "CS"], RedPaletteColorLookupTableDescriptor: [0x00281101, "US"],
  GreenPaletteColorLookupTableDescriptor: [0x00281102, "US"], BluePaletteColorLookupTableDescriptor: [0x00281103, "US"],
  RedPaletteColorLookupTableData: [0x00281201, "OW"], GreenPaletteColorLookupTableData: [0x00281202, "OW"],
  BluePaletteColorLookupTableData: [0x00281203, "OW"], SegmentedRedPaletteColorLookupTableData: [0x00281221, "OW"],
  ModalityLUTSequence: [0x00283000, "SQ"], LUTDescriptor: [0x00283002, "US"], LUTData: [0x00283006, "OW"],
  VOILUTSequence: [0x00283010, "SQ"], FrameVOILUTSequence: [0x00289132, "SQ"],
  PixelValueTransformationSequence: [0x00289145, "SQ"], SharedFunctionalGroupsSequence: [0x52009229, "SQ"],
  PerFrameFunctionalGroupsSequence: [0x52009230, "SQ"], FloatPixelData: [0x7fe00008, "OF"],
  DoubleFloatPixelData: [0x7fe00009, "OD"], PixelData: [0x7fe00010, "OW"],
};
const KNOWN_VRS = new Map(Object.values(TAGS));
const PIXELS = ["FloatPixelData", "DoubleFloatPixelData", "PixelData"].map((name) => TAGS[name][0]);
const NUMBERS = {
  US: [2, "getUint16"], SS: [2, "getInt16"], UL: [4, "getUint32"], SL: [4, "getInt32"], FL: [4, "getFloat32"], FD: [8, "getFloat64"],
};

const letters = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));
export const damaged = () => new Problem("DICOM file cannot be read: its tags are damaged or cut off");

// A preamble and DICM, or else two tags of the first groups in ascending order, as data sets without a file header begin.
// As is_dicom in featurize/images/file_kinds.py.
export function isDicom(bytes) {
  return letters(bytes, 128, 132) === "DICM" || beginsWithTags(bytes, true) || beginsWithTags(bytes, false);
}

function beginsWithTags(bytes, little) {
  const view = viewOf(bytes);
  for (let at = 0, previous = 0; at + 12 <= bytes.length;) {
    const [group, vr] = [view.getUint16(at, little), letters(bytes, at + 4, at + 6)];
    const tag = group * 0x10000 + view.getUint16(at + 2, little);
    const head = LONG_VRS.has(vr) ? 12 : 8;
    const length = VRS.has(vr) && head === 8 ? view.getUint16(at + 6, little) : view.getUint32(at + head - 4, little);
    const isFirst = (previous ? FIRST_GROUPS : [0x0002, 0x0008]).includes(group);
    if (!isFirst || tag <= previous || (length % 2 && vr !== "SQ") || length > 1 << 16) return false;
    if (previous) return true;
    [previous, at] = [tag, at + head + length];
    if (at + 8 > bytes.length) return bytes.length >= 132;
  }
  return false;
}

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

// The tags of a data set, or of an item of a sequence in it.
class Tags {
  constructor(bytes, elements) {
    this.bytes = bytes;
    this.elements = elements;
  }

  // {vr, begin, end, hasLength}: where the value is in the bytes; or undefined.
  find(name) {
    const element = this.elements.get(TAGS[name][0]);
    if (element && !VRS.has(element.vr)) throw damaged();
    return element;
  }

  content(name) {
    const element = this.find(name);
    return element ? this.bytes.subarray(element.begin, element.end) : new Uint8Array();
  }

  text(name) {
    const { begin, end } = this.find(name) ?? { begin: 0, end: 0 };
    return letters(this.bytes, begin, Math.min(end, begin + 1024)).replace(/^[\s\0]+|[\s\0]+$/g, "");
  }

  // As numbers in featurize/images/dicom/header.py. `empty` stands for an empty one of several values, which are left out by default.
  numbers(name, empty) {
    const element = this.find(name);
    if (!element) return [];
    const [size, read] = NUMBERS[element.vr] ?? [];
    const length = element.end - element.begin;
    if (size && length % size) throw new Problem(`DICOM tag ${name} is not a number`);
    const view = viewOf(this.bytes);
    const values = size
      ? Array.from({ length: length / size }, (_, at) => view[read](element.begin + at * size, true))
      : this.text(name).split("\\").map((text) => numberIn(text.replace(/^[\s\0]+|[\s\0]+$/g, ""), name));
    if (!values.every((value) => value === null || Number.isFinite(value))) throw new Problem(`DICOM tag ${name} is not a finite number: ${this.text(name).slice(0, 40)}`);
    return values.map((value) => value ?? empty).filter((value) => value !== undefined);
  }

  integer(name, otherwise) {
    const [value = otherwise] = this.numbers(name);
    if (value === undefined) throw new Problem(`DICOM file without the tag ${name}, which an image must have`);
    return Math.trunc(value);
  }

  items(name) {
    const element = this.find(name);
    if (!element) return [];
    const items = element.items ?? readItems(this.bytes, element.begin, element.end, element.implicit, element.depth + 1).items;
    return items.map((elements) => new Tags(this.bytes, elements));
  }

  // Takes over what is absent or empty here.
  complete(other) {
    for (const [tag, element] of other.elements) {
      const own = this.elements.get(tag);
      if (!own || (own.begin === own.end && !own.items)) this.elements.set(tag, element);
    }
  }
}

function numberIn(text, name) {
  if (text === "") return null;
  if (/^[+-]?(nan|inf|infinity)$/i.test(text)) return NaN;
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) throw new Problem(`DICOM tag ${name} is not a number: ${text.slice(0, 40)}`);
  return Number(text);
}

// Reads a file, with or without preamble and file header. Returns its tags and the UID of its transfer syntax.
export function readTags(bytes) {
  const start = letters(bytes, 128, 132) === "DICM" ? 132 : 0;
  const header = readElements(bytes, start, bytes.length, false, 0, (tag) => tag >= 0x00030000);
  const meta = new Tags(bytes, header.elements);
  const syntax = meta.text("TransferSyntaxUID");
  // A header that is wrong about this is not believed.
  const body = isImplicit(bytes, header.at) ? { implicit: true, syntax: "1.2.840.10008.1.2" } : { implicit: false, syntax: "1.2.840.10008.1.2.1" };
  const isBig = !syntax && viewOf(bytes).getUint16(Math.min(header.at, bytes.length - 2), true) >= 1024;
  const { elements } = readElements(bytes, header.at, bytes.length, body.implicit, 0);
  return { tags: new Tags(bytes, new Map([...header.elements, ...elements])), syntax: isBig ? "1.2.840.10008.1.2.2" : syntax || body.syntax };
}

function isImplicit(bytes, at) {
  return !/^[A-Z]{2}$/.test(letters(bytes, at + 4, at + 6));
}

// Reads data elements up to `end`, or up to the end of their item. Returns them by their tags, and where they end.
function readElements(bytes, start, end, implicit, depth, isBehind = () => false) {
  if (depth > MOST_NESTED) throw damaged();
  const [view, elements] = [viewOf(bytes), new Map()];
  let at = start;
  while (at + 8 <= end) {
    const tag = view.getUint16(at, true) * 0x10000 + view.getUint16(at + 2, true);
    if (isBehind(tag)) break;
    if (tag === ITEM_END || tag === SEQUENCE_END) return { elements, at: at + 8 };
    const stated = letters(bytes, at + 4, at + 6);
    const isStated = !implicit && stated >= "AA" && stated <= "ZZ";
    const head = isStated && LONG_VRS.has(stated) ? 12 : 8;
    if (at + head > end) break;
    const length = isStated && head === 8 ? view.getUint16(at + 6, true) : view.getUint32(at + head - 4, true);
    const vr = isStated && stated !== "UN" ? stated : KNOWN_VRS.get(tag) ?? "UN";
    const begin = at + head;
    if (length !== UNDEFINED || PIXELS.includes(tag)) {
      at = length === UNDEFINED ? endOfFragments(bytes, begin, end) : Math.min(begin + length, end);
      elements.set(tag, { vr, begin, end: at, hasLength: length !== UNDEFINED, implicit: implicit || stated === "UN", depth });
    } else {
      const sequence = readItems(bytes, begin, end, implicit || stated === "UN", depth + 1);
      elements.set(tag, { vr: "SQ", begin, end: sequence.at, items: sequence.items });
      at = sequence.at;
    }
  }
  return { elements, at };
}

function readItems(bytes, start, end, implicit, depth) {
  const [view, items] = [viewOf(bytes), []];
  let at = start;
  while (at + 8 <= end) {
    const tag = view.getUint16(at, true) * 0x10000 + view.getUint16(at + 2, true);
    const length = view.getUint32(at + 4, true);
    at += 8;
    if (tag === SEQUENCE_END) break;
    if (tag !== ITEM) throw damaged();
    const stop = length === UNDEFINED ? end : Math.min(at + length, end);
    const item = readElements(bytes, at, stop, implicit || isImplicit(bytes, at), depth + 1);
    items.push(item.elements);
    at = length === UNDEFINED ? item.at : stop;
  }
  return { items, at };
}

// The pieces of compressed pixels: the table of their places, which may be empty, and the pieces. Source: PS3.5, A.4.
export function readFragments(bytes, { begin, end }) {
  const pieces = [];
  const stop = walkFragments(bytes, begin, end, (start, length) => pieces.push(bytes.subarray(start, start + length)));
  if (stop === null || !pieces.length) throw new Problem("DICOM file without an image: it has no pixel data, or is cut off");
  return { table: pieces[0], pieces: pieces.slice(1) };
}

// An icon inside a sequence may have pixels of its own, after which the file goes on.
const endOfFragments = (bytes, begin, end) => walkFragments(bytes, begin, end, () => {}) ?? end;

// Returns where the pieces end, or null if they are cut off.
function walkFragments(bytes, begin, end, visit) {
  const view = viewOf(bytes);
  for (let at = begin; at + 8 <= end;) {
    const tag = view.getUint16(at, true) * 0x10000 + view.getUint16(at + 2, true);
    const length = view.getUint32(at + 4, true);
    if (tag === SEQUENCE_END) return at + 8;
    if (tag !== ITEM || at + 8 + length > end) break;
    visit(at + 8, length);
    at += 8 + length;
  }
  return null;
}
