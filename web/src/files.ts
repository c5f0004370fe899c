// A visitor's own picture: upright, opaque and small, or refused in one sentence.

import type { Picture } from "./pixels";

/** What is wrong with a file, in words for the visitor. */
export class PictureError extends Error {}

const KINDS = "JPEG, PNG, WebP, GIF, BMP or AVIF";

async function decode(file: Blob, name: string): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" }); // turned as the camera says
  } catch {
    throw new PictureError(`${name} cannot be read as a picture here; expected ${KINDS}.`);
  }
}

/** Pixels of a decoded picture at another size. */
export function pixelsOf(bitmap: ImageBitmap, width = bitmap.width, height = bitmap.height): Picture {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true })!;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return { width, height, data: context.getImageData(0, 0, width, height).data };
}

/** Lays a picture on white; says whether that made a difference. */
function layOnWhite({ data }: Picture): boolean {
  let transparent = false;
  for (let i = 0; i < data.length; i += 4) {
    const opacity = data[i + 3] / 255;
    if (opacity === 1) continue;
    transparent = true;
    for (let c = i; c < i + 3; c++) data[c] = data[c] * opacity + 255 * (1 - opacity);
    data[i + 3] = 255;
  }
  return transparent;
}

/** A file's picture and a sentence on what was done to it; PictureError for what is no picture, or too small. */
export async function readPicture(
  file: Blob,
  name: string,
  least: number, // pixels that each side must have
  longest: number, // longest side that is kept, pixels
  ratio: number, // of the sides, which they must stay below
): Promise<{ picture: Picture; said: string }> {
  const bitmap = await decode(file, name);
  const { width, height } = bitmap;
  const size = `${width} × ${height} pixels`;
  if (Math.min(width, height) < least)
    throw new PictureError(`${name} has ${size}; expected at least ${least} pixels a side.`);
  if (Math.max(width, height) >= ratio * Math.min(width, height))
    throw new PictureError(`${name} has ${size}; expected one side to be less than ${ratio} times the other.`);
  const scale = Math.min(1, longest / Math.max(width, height));
  const picture = pixelsOf(bitmap, Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  bitmap.close();
  const said = [`${name}, ${size}.`];
  if (scale < 1) said.push(`It is shown at ${picture.width} × ${picture.height}.`);
  if (layOnWhite(picture)) said.push("Its transparent pixels lie on white.");
  return { picture, said: said.join(" ") };
}

/** A picture of the page itself. */
export async function fetchPicture(url: string): Promise<Picture> {
  const response = await fetch(url);
  if (!response.ok) throw new PictureError(`${url} cannot be fetched (status ${response.status}).`);
  const bitmap = await decode(await response.blob(), url);
  const picture = pixelsOf(bitmap);
  bitmap.close();
  return picture;
}
