// Pillow's resize, bit for bit, so that the network gets the same input as on a server: a difference of one grey level can
// change a probability by 0.001. Source: Pillow, src/libImaging/Resample.c.

const FRACTION_BITS = 22; // of a fixed-point weight

const BILINEAR = { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) };

// bicubic_filter with a = -0.5.
export const BICUBIC = {
  reach: 2,
  weight(x) {
    const far = Math.abs(x);
    if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
    return far < 2 ? (((far - 5) * far + 8) * far - 4) * -0.5 : 0;
  },
};

const FILTERS = { bilinear: BILINEAR, bicubic: BICUBIC };

// For each of `to` output positions: the first of its input positions (of `from`), and their weights, which add up to 1.
export function weightsOf(from, to, { reach, weight }) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * stretch + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, i) => weight((first + i - centre + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, each) => total + each, 0);
    return { first, weights: weights.map((each) => each / sum) };
  });
}

// Resizes lines of pixels (rows or columns). `step` is the distance from pixel to pixel, `stride` from line to line.
function resizeLines(from, to, filter) {
  weightsOf(from.length, to.length, filter).forEach(({ first, weights }, at) => {
    const whole = Int32Array.from(weights, (each) => Math.trunc((each < 0 ? -0.5 : 0.5) + each * (1 << FRACTION_BITS)));
    for (let line = 0; line < from.lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 1 << (FRACTION_BITS - 1);
        let place = line * from.stride + first * from.step + channel;
        for (let i = 0; i < whole.length; i++, place += from.step) sum += from.data[place] * whole[i];
        to.data[line * to.stride + at * to.step + channel] = sum >> FRACTION_BITS;
      }
    }
  });
}

const rowsOf = ({ data, width, height, size }) => ({ data, lines: height, length: width, step: size, stride: size * width });
const columnsOf = ({ data, width, height, size }) => ({ data, lines: width, length: height, step: size * width, stride: size });
const newPicture = (width, height) => ({ data: new Uint8ClampedArray(width * height * 3), width, height, size: 3 });

// From RGBA pixels of any size, already cut, to `side` · `side` · 3 RGB values; the aspect ratio is not preserved.
export function squash(rgba, width, height, { input_size: side, interpolation }) {
  const whole = { data: rgba, width, height, size: 4 };
  // Pillow resizes the columns first if that is less work; the order matters, because each pass rounds.
  const columnsFirst = height > Math.max(2 * width - side, side);
  const half = columnsFirst ? newPicture(width, side) : newPicture(side, height);
  const small = newPicture(side, side);
  const passes = columnsFirst ? [columnsOf, rowsOf] : [rowsOf, columnsOf];
  resizeLines(passes[0](whole), passes[0](half), FILTERS[interpolation]);
  resizeLines(passes[1](half), passes[1](small), FILTERS[interpolation]);
  return new Uint8Array(small.data.buffer);
}
