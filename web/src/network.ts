// The exported ViT: what its file says of it, and logits and maps of a picture.

import * as ort from "onnxruntime-web/wasm";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm";

import { enlarge, minMax, normalize, resize, sizeOfWholePatches, type Picture } from "./pixels";

/** What `wegformer export` writes into the file's metadata. */
interface About {
  classes: string[];
  mean: number[];
  std: number[];
  patch: [number, number];
}

/** What the network finds in a picture. */
export interface Found {
  logits: Float32Array; // (classes,)
  maps: Float32Array; // (classes, rows, columns), as the graph gives them
  grid: [number, number]; // columns, rows
  attention: Float32Array[]; // for each class, of the picture's size, in [0, 1]
}

/** Key and value of every metadata entry of an ONNX file; onnxruntime-web itself does not read them. */
export function metadata(file: Uint8Array): Record<string, string> {
  const METADATA = 14; // ModelProto.metadata_props, of key (1) and value (2)
  const entries: Record<string, string> = {};
  const text = new TextDecoder();
  for (const [field, entry] of fields(file)) {
    if (field !== METADATA) continue;
    const parts = Object.fromEntries(fields(entry));
    entries[text.decode(parts[1])] = text.decode(parts[2]);
  }
  return entries;
}

/** The fields of a protocol buffer's message that hold bytes; its numbers are passed over. */
function* fields(message: Uint8Array): Generator<[number, Uint8Array]> {
  let at = 0;
  const varint = () => {
    let [value, scale] = [0, 1];
    for (; message[at] & 128; scale *= 128) value += (message[at++] & 127) * scale;
    return value + message[at++] * scale;
  };
  while (at < message.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 2) {
      const length = varint();
      yield [Math.floor(tag / 8), message.subarray(at, at + length)];
      at += length;
    } else at += kind === 5 ? 4 : 8;
  }
}

export class Network {
  private constructor(
    private readonly session: ort.InferenceSession,
    readonly about: About,
    readonly longSide: number, // of what the network is shown, pixels
  ) {}

  static async load(url: string, longSide: number): Promise<Network> {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} cannot be fetched (status ${response.status}).`);
    const file = new Uint8Array(await response.arrayBuffer());
    const entries = metadata(file);
    const [classes, mean, std, patch] = ["classes", "mean", "std", "patch"].map((key) => JSON.parse(entries[key]));
    ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    ort.env.wasm.wasmPaths = { wasm: new URL(wasm, import.meta.url).href };
    const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    return new Network(session, { classes, mean, std, patch }, longSide);
  }

  /** What the network is shown of a picture. */
  view(picture: Picture): Picture {
    const patch = this.about.patch[0];
    return resize(picture, ...sizeOfWholePatches(picture.width, picture.height, this.longSide, patch));
  }

  async look(picture: Picture): Promise<Found> {
    const view = this.view(picture);
    const { classes, mean, std, patch } = this.about;
    const image = new ort.Tensor("float32", normalize(view, mean, std), [1, 3, view.height, view.width]);
    const { logits, maps } = await this.session.run({ image });
    const grid: [number, number] = [view.width / patch[1], view.height / patch[0]];
    const cells = maps.data as Float32Array;
    const attention = classes.map((_, c) => {
      const own = cells.subarray(c * grid[0] * grid[1], (c + 1) * grid[0] * grid[1]);
      return minMax(enlarge(own, grid, picture.width, picture.height));
    });
    return { logits: logits.data as Float32Array, maps: cells, grid, attention };
  }
}
