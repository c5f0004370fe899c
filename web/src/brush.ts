// A brush on a canvas whose pixels are those of a picture: by pointer, finger or keyboard.

export interface Stroke {
  x: number; // centre, pixels of the picture
  y: number;
}

const MOVES: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

/** Sets all values within a circle. */
export function dab(values: Uint8Array, width: number, { x, y }: Stroke, radius: number, value: number): void {
  const height = values.length / width;
  const [top, bottom] = [Math.max(0, Math.ceil(y - radius)), Math.min(height - 1, Math.floor(y + radius))];
  for (let row = top; row <= bottom; row++) {
    const reach = Math.sqrt(radius ** 2 - (row - y) ** 2);
    const [left, right] = [Math.max(0, Math.ceil(x - reach)), Math.min(width - 1, Math.floor(x + reach))];
    if (left <= right) values.fill(value, row * width + left, row * width + right + 1);
  }
}

/** Calls `paint` for every place that the brush touches, and `moved` where it only moves. */
export class Brush {
  at: Stroke | null = null; // where the keyboard's brush is; null: it is not in use

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly paint: (places: Stroke[]) => void,
    private readonly moved: () => void,
  ) {
    let last: Stroke | null = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.at = null;
      last = this.place(event);
      paint([last]);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const next = this.place(event);
      paint(line(last, next));
      last = next;
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      this.at = null;
      moved();
    });
  }

  private place(event: PointerEvent): Stroke {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.canvas.width;
    const y = ((event.clientY - box.top) / box.height) * this.canvas.height;
    return { x: x - 0.5, y: y - 0.5 }; // a pixel's centre is a whole number
  }

  private key(event: KeyboardEvent): void {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    const { width, height } = this.canvas;
    const at = this.at ?? { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    const far = event.shiftKey ? 1 : Math.ceil(Math.max(width, height) / 40);
    const [dx, dy] = move && this.at ? move : [0, 0]; // the first key shows the brush
    const inside = (value: number, size: number) => Math.min(Math.max(value, 0), size - 1);
    this.at = { x: inside(at.x + far * dx, width), y: inside(at.y + far * dy, height) };
    if (move) this.moved();
    else this.paint([this.at]);
  }
}

/** Places from one to the other, a pixel apart at most. */
function line(from: Stroke, to: Stroke): Stroke[] {
  const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y)));
  return Array.from({ length: steps }, (_, k) => {
    const share = (k + 1) / steps;
    return { x: from.x + share * (to.x - from.x), y: from.y + share * (to.y - from.y) };
  });
}
