// Pixels of each panel: maps over the grey picture, labels in the classes' colours, and what each step ignored.

import { IGNORE } from "./labels";
import type { Picture } from "./pixels";

export type Colour = [number, number, number];

const COVER = 0.65; // how much of a map or label covers the picture, as in the package's figures

/** Shows pixels on a canvas of their own size; the page enlarges it. */
export function show(canvas: HTMLCanvasElement, { width, height, data }: Picture): void {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d")!.putImageData(new ImageData(new Uint8ClampedArray(data), width, height), 0, 0);
}

/** A panel whose pixels are the colours that `colour` gives, laid over what `under` gives. */
function mixed(picture: Picture, under: "grey" | "colour", colour: (i: number) => Colour | null): Picture {
  const { width, height, data } = picture;
  const out = new Uint8ClampedArray(data.length).fill(255);
  for (let i = 0; i < width * height; i++) {
    const over = colour(i);
    const grey = (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3;
    for (let c = 0; c < 3; c++) {
      const ground = under === "grey" ? grey : data[4 * i + c];
      out[4 * i + c] = over === null ? ground : COVER * over[c] + (1 - COVER) * ground;
    }
  }
  return { width, height, data: out };
}

/** A map in [0, 1] over the grey picture. */
export function mapPanel(picture: Picture, map: ArrayLike<number>, colormap: Colour[]): Picture {
  return mixed(picture, "grey", (i) => colormap[Math.min(255, Math.floor(map[i] * 256))]);
}

/** A saliency map: white where something stands out. */
export function saliencyPanel(picture: Picture, saliency: Uint8Array | null): Picture {
  return mixed(picture, "grey", (i) => (saliency === null ? null : [saliency[i], saliency[i], saliency[i]]));
}

/** What each step ignored, over the grey picture. */
export function stepPanel(picture: Picture, step: Uint8Array, colours: Record<number, Colour>): Picture {
  return mixed(picture, "grey", (i) => colours[step[i]] ?? null);
}

/** A label over the picture, the background clear, every region with an outline: `label_rgb` of the package. */
export function labelPanel(picture: Picture, label: Uint8Array, colours: Colour[]): Picture {
  const { width, height } = picture;
  const out = mixed(picture, "colour", (i) => (label[i] === 0 ? null : colours[label[i]]));
  const paint = (i: number, colour: Colour) => out.data.set(colour, 4 * i);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const around = [
        label[y > 0 ? i - width : i],
        label[y < height - 1 ? i + width : i],
        label[x > 0 ? i - 1 : i],
        label[x < width - 1 ? i + 1 : i],
      ];
      if (label[i] === IGNORE) continue;
      if (label[i] > 0 && around.some((other) => other !== label[i])) paint(i, colours[label[i]]);
      const beside = Math.max(...around.map((other) => (other === IGNORE ? 0 : other)));
      if (label[i] > 0 || beside === 0) continue;
      const [r, g, b] = colours[beside];
      paint(i, 0.299 * r + 0.587 * g + 0.114 * b > 128 ? [0, 0, 0] : [255, 255, 255]);
    }
  return out;
}
