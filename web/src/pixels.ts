// Pictures and maps change their size as the package changes it, and are stretched to [0, 1] as there.

/** A picture as a canvas gives it: red, green, blue and opacity of every pixel, row by row. */
export interface Picture {
  width: number;
  height: number;
  data: Uint8ClampedArray;
}

/** Both sides at `longSide` with the aspect kept, each rounded up to a multiple of the patch: `size_of_whole_patches`. */
export function sizeOfWholePatches(width: number, height: number, longSide: number, patch: number): [number, number] {
  const scale = longSide / Math.max(width, height);
  const whole = (side: number) => Math.max(1, Math.ceil(Number((side * scale).toFixed(6)) / patch)) * patch;
  return [whole(width), whole(height)];
}

/** Which pixels each new pixel is a mean of, and their weights as integers of `bits` binary places. */
function antialias(from: number, to: number) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const rows = Array.from({ length: to }, (_, i) => {
    const centre = scale * (i + 0.5);
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), from);
    const triangle = (j: number) => Math.max(0, 1 - Math.abs((j - centre + 0.5) / support));
    const weights = Array.from({ length: end - first }, (_, j) => triangle(first + j));
    const total = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((w) => w / total) };
  });
  const heaviest = Math.max(...rows.map((row) => Math.max(...row.weights)));
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + heaviest * 2 ** (bits + 1)) < 2 ** 15) bits++; // they fit 16 bits
  const taps = rows.map(({ first, weights }) => ({
    first,
    weights: Int32Array.from(weights, (w) => Math.trunc(w * 2 ** bits + 0.5)),
  }));
  return { taps, bits };
}

/** One axis of a picture at its new length; `stride` is the distance of neighbours on it. */
function resizeAxis(picture: Picture, horizontal: boolean, length: number): Picture {
  const { width, height, data } = picture;
  const [w, h] = horizontal ? [length, height] : [width, length];
  const out = new Uint8ClampedArray(4 * w * h);
  const stride = horizontal ? 4 : 4 * width;
  const { taps, bits } = antialias(horizontal ? width : height, length);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      const { first, weights } = taps[horizontal ? x : y];
      const start = horizontal ? 4 * y * width : 4 * x;
      for (let channel = 0; channel < 4; channel++) {
        let sum = 1 << (bits - 1); // rounds
        for (let j = 0; j < weights.length; j++) sum += weights[j] * data[start + (first + j) * stride + channel];
        out[4 * (y * w + x) + channel] = sum >> bits;
      }
    }
  return { width: w, height: h, data: out };
}

/** A picture resized as torchvision resizes bytes: bilinear with antialiasing, rounded after each axis. */
export function resize(picture: Picture, width: number, height: number): Picture {
  const narrow = picture.width === width ? picture : resizeAxis(picture, true, width);
  return narrow.height === height ? narrow : resizeAxis(narrow, false, height);
}

/** What the network reads: (3, H, W) float32, normalised as it was trained. */
export function normalize(picture: Picture, mean: number[], std: number[]): Float32Array {
  const pixels = picture.width * picture.height;
  const out = new Float32Array(3 * pixels);
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < pixels; i++) {
      const share = Math.fround(picture.data[4 * i + c] / 255);
      out[c * pixels + i] = Math.fround(share - Math.fround(mean[c])) / Math.fround(std[c]);
    }
  return out;
}

/** For each new pixel of an axis: the two cells that it lies between, and how near it is to the second. */
function between(from: number, to: number): { low: number; high: number; share: number }[] {
  return Array.from({ length: to }, (_, i) => {
    const place = Math.max(((i + 0.5) * from) / to - 0.5, 0);
    const low = Math.min(Math.floor(place), from - 1);
    return { low, high: Math.min(low + 1, from - 1), share: place - low };
  });
}

/** A map on the patch grid, bilinearly enlarged to a picture's size. */
export function enlarge(grid: Float32Array, [columns, rows]: number[], width: number, height: number): Float32Array {
  const out = new Float32Array(width * height);
  const across = between(columns, width);
  between(rows, height).forEach((y, row) => {
    across.forEach((x, column) => {
      const line = (r: number) =>
        grid[r * columns + x.low] * (1 - x.share) + grid[r * columns + x.high] * x.share;
      out[row * width + column] = line(y.low) * (1 - y.share) + line(y.high) * y.share;
    });
  });
  return out;
}

/** A map stretched to [0, 1], as `min_max` does it; a constant map becomes 0. */
export function minMax(map: Float32Array): Float32Array {
  let [low, high] = [Infinity, -Infinity];
  for (const a of map) {
    if (a < low) low = a;
    if (a > high) high = a;
  }
  const range = Math.fround(Math.fround(high - low) + Math.fround(1e-8));
  return map.map((a) => Math.fround(a - low) / range);
}
