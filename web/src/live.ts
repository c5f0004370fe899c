// The page: a picture goes through the network once; every control then redraws from its maps.

import "./live.css";
import { Brush, dab, type Stroke } from "./brush";
import { ERASE, MAIN, MORE, make, RuleControls } from "./controls";
import { fetchPicture, PictureError, readPicture } from "./files";
import { IGNORE, labelWithSteps, softErase, type Labelled, type Map2d } from "./labels";
import { type Found, Network } from "./network";
import { labelPanel, mapPanel, saliencyPanel, show, stepPanel, type Colour } from "./panels";
import type { Picture } from "./pixels";

interface Sample {
  image: string;
  saliency: string;
  classes: number[]; // ids, from 1 on
}

/** What build.py takes from the package. */
interface Page {
  long_side: number;
  colours: Colour[];
  colormap: Colour[];
  samples: Sample[];
}

/** A picture with all that is known of it. */
interface Scene {
  picture: Picture;
  found: Found;
  present: Set<number>; // ids of the classes that it is labelled with
  shown: number; // id of the class whose map is shown
  detector: Uint8Array | null; // the saliency map that came with it
  saliency: Uint8Array | null; // the one in use
}

const LARGEST = 320; // longest side of an uploaded picture, pixels: about what a panel can show
const STEPS: Record<number, { text: string; colour: Colour }> = {
  3: { text: "step 3, conflict", colour: [0, 90, 200] },
  5: { text: "step 5, doubt", colour: [240, 220, 60] },
  6: { text: "step 6, EPOM", colour: [215, 0, 80] },
  7: { text: "step 7, too little of any class", colour: [235, 235, 235] },
};

const get = <T extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as T;
const canvas = (id: string) => get<HTMLCanvasElement>(id);
const css = ([r, g, b]: Colour) => `rgb(${r} ${g} ${b})`;
const percent = (count: number, pixels: number) => `${((100 * count) / pixels).toFixed(1)} %`;

let page: Page;
let network: Network;
let scene: Scene | null = null;
let labelled: Labelled | null = null;
let newest = 0; // number of the picture that was asked for last

/** A small square in a class's colour. */
function swatch(colour: Colour): HTMLElement {
  const square = make("span", { class: "swatch" });
  square.style.setProperty("--colour", css(colour));
  return square;
}

const className = (id: number) => network.about.classes[id - 1];

// ---- redrawing ----

let asked = 0; // when the redraw that is to come was asked for; 0: none is

/** Redraws in the next frame, once, however often it is asked for until then. */
function redraw(): void {
  if (asked) return;
  asked = performance.now();
  requestAnimationFrame(() => {
    const start = asked;
    asked = 0;
    if (scene === null) return;
    drawAll(scene);
    const { duration } = performance.measure("redraw", { start });
    get("redraw-time").textContent = `${duration.toFixed(0)} ms`;
  });
}

const controls = new RuleControls(redraw);

/** Label, panels and numbers of a scene under the rule of now. */
function drawAll(now: Scene): void {
  const { picture, found, present, shown, saliency } = now;
  const rule = controls.rule;
  const classes = [...present].sort((a, b) => a - b);
  const maps = classes.map((id) => found.attention[id - 1]);
  labelled = labelWithSteps(maps, classes, saliency, rule, picture.width * picture.height);
  const map = found.attention[shown - 1];
  let erased: Map2d = map;
  if (present.has(shown)) erased = labelled.erased[classes.indexOf(shown)];
  else if (rule.erase_rate !== null) erased = softErase(map, rule.erase_rate, rule.renormalize);
  show(canvas("picture"), picture);
  show(canvas("map"), mapPanel(picture, map, page.colormap));
  show(canvas("erased"), mapPanel(picture, erased, page.colormap));
  drawSaliency(picture, saliency);
  drawSaid(now);
  show(canvas("label"), labelPanel(picture, labelled.label, page.colours));
  const colours = Object.fromEntries(Object.entries(STEPS).map(([step, { colour }]) => [step, colour]));
  show(canvas("steps"), stepPanel(picture, labelled.step, colours));
  for (const place of document.querySelectorAll(".shown")) place.textContent = className(shown);
  drawClasses(found, present, shown);
  drawNumbers(labelled, classes);
}

function drawSaliency(picture: Picture, saliency: Uint8Array | null): void {
  const place = canvas("saliency");
  show(place, saliencyPanel(picture, saliency));
  if (brush.at === null) return;
  const context = place.getContext("2d")!;
  for (const [colour, width] of [["#000", 2], ["#fff", 1]] as const) {
    context.beginPath();
    context.arc(brush.at.x + 0.5, brush.at.y + 0.5, brushSize(), 0, 2 * Math.PI);
    [context.strokeStyle, context.lineWidth] = [colour, width];
    context.stroke();
  }
}

/** Boxes and buttons of the classes are made once, and told their state. */
function drawClasses({ logits }: Found, present: Set<number>, shown: number): void {
  for (const row of document.querySelectorAll<HTMLElement>(".class")) {
    const id = Number(row.dataset.id);
    const probability = 1 / (1 + Math.exp(-logits[id - 1]));
    const button = row.querySelector("button")!;
    row.querySelector("input")!.checked = present.has(id);
    button.setAttribute("aria-pressed", String(id === shown));
    button.style.setProperty("--share", `${100 * probability}%`);
    button.querySelector("output")!.textContent = probability.toFixed(2);
  }
}

function drawNumbers({ label, step, thresholds }: Labelled, classes: number[]): void {
  const counts = new Array<number>(IGNORE + 1).fill(0);
  for (const id of label) counts[id]++;
  const ignored = new Array<number>(8).fill(0);
  for (const number of step) ignored[number]++;
  const legend = (colour: Colour, text: string) => make("li", {}, swatch(colour), ` ${text}`);
  const names = classes.map((id) => legend(page.colours[id], className(id)));
  get("label-legend").replaceChildren(...names, legend(page.colours[IGNORE], "ignored"));
  const steps = Object.entries(STEPS).map(([number, { text, colour }]) =>
    legend(colour, `${text}: ${percent(ignored[Number(number)], label.length)}`),
  );
  get("steps-legend").replaceChildren(...steps);
  const row = (name: string, count: number, note: string, colour?: Colour) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, ...(colour ? [swatch(colour), ` ${name}`] : [name])),
      make("td", { class: "n" }, percent(count, label.length)),
      make("td", {}, note),
    );
  const own = classes.map((id, k) => {
    const note = thresholds.length ? `above ${thresholds[k].value.toFixed(3)} (${thresholds[k].branch})` : "off";
    return row(className(id), counts[id], note, page.colours[id]);
  });
  const last = row("ignored", counts[IGNORE], "", page.colours[IGNORE]);
  get("shares").replaceChildren(row("background", counts[0], ""), ...own, last);
}

// ---- saliency ----

const brushSize = () => Number(get<HTMLInputElement>("brush-size").value);

const brush = new Brush(
  canvas("saliency"),
  (places: Stroke[]) => {
    if (scene === null) return;
    const { width, height } = scene.picture;
    const painted = scene.saliency === null ? new Uint8Array(width * height) : scene.saliency.slice();
    const value = Number(get<HTMLInputElement>("brush-value").value);
    for (const place of places) dab(painted, width, place, brushSize(), value);
    setSaliency(painted);
  },
  redraw,
);

function setSaliency(saliency: Uint8Array | null): void {
  if (scene === null) return;
  scene.saliency = saliency;
  drawSources(scene);
  redraw();
}

/** Buttons and words that say which map is in use. */
function drawSources({ saliency, detector, picture }: Scene): void {
  const empty = saliency?.every((value) => value === 0) ?? false;
  const sources: [string, boolean, () => void][] = [
    ["none", saliency === null, () => setSaliency(null)],
    ["empty map", empty, () => setSaliency(new Uint8Array(picture.data.length / 4))],
  ];
  if (detector !== null) sources.unshift(["detector's map", saliency === detector, () => setSaliency(detector)]);
  const place = get("sources");
  const focused = [...place.children].findIndex((child) => child === document.activeElement);
  place.replaceChildren(
    ...sources.map(([text, pressed, choose]) => {
      const button = make("button", { type: "button", "aria-pressed": String(pressed) }, text);
      button.addEventListener("click", choose);
      return button;
    }),
  );
  if (focused >= 0) (place.children[focused] as HTMLElement | undefined)?.focus();
}

/** Words under the saliency map: where it comes from, or that the rule does not look at it. */
function drawSaid({ saliency, detector }: Scene): void {
  const { background, uncertain } = controls.rule;
  const empty = saliency?.every((value) => value === 0) ?? false;
  let said = "Painted by you.";
  if (saliency === null)
    said = "There is no saliency map: the background has a constant score instead. A first dab begins an empty map.";
  else if (saliency === detector) said = "Bright: what stands out, as a detector sees it that misses things and borders.";
  else if (empty) said = "The map is empty: nothing stands out, so that all is background.";
  if (background === "constant" && uncertain === "off") said = "This rule reads no saliency: no map is needed.";
  get("saliency-said").textContent = said;
}

// ---- pictures ----

function say(text: string, wrong = false): void {
  get("status").textContent = text;
  get("status").classList.toggle("wrong", wrong);
}

/** Shows what `fetched` gives, unless another picture was asked for meanwhile. */
async function open(
  fetched: () => Promise<{ picture: Picture; saliency: Uint8Array | null; classes: number[] | null; said: string }>,
): Promise<boolean> {
  const [number, start] = [++newest, performance.now()];
  try {
    const { picture, saliency, classes, said } = await fetched();
    const ready = performance.now();
    const found = await network.look(picture);
    if (number !== newest) return false;
    const likely = [...found.logits.keys()].sort((a, b) => found.logits[b] - found.logits[a]).map((index) => index + 1);
    const guessed = likely.filter((id, place) => place === 0 || found.logits[id - 1] > 0); // probability above 1/2
    const present = new Set(classes ?? guessed);
    const shown = likely.find((id) => present.has(id)) ?? likely[0];
    scene = { picture, found, present, shown, detector: saliency, saliency };
    drawSources(scene);
    drawAll(scene);
    const { duration } = performance.measure("map", { start: ready });
    performance.measure("picture", { start });
    get("map-time").textContent = `${duration.toFixed(0)} ms`;
    say(said);
    return true;
  } catch (error) {
    if (number === newest) say(error instanceof PictureError ? error.message : `This failed: ${error}`, true);
    return false;
  }
}

async function openSample(sample: Sample, button: HTMLElement): Promise<void> {
  const names = sample.classes.map(className).join(", ");
  const opened = await open(async () => {
    const [picture, saliency] = await Promise.all([fetchPicture(sample.image), fetchPicture(sample.saliency)]);
    const grey = Uint8Array.from({ length: saliency.data.length / 4 }, (_, i) => saliency.data[4 * i]);
    return { picture, saliency: grey, classes: sample.classes, said: `A drawn picture; its words: ${names}.` };
  });
  if (opened) press(button);
}

async function openFile(file: File): Promise<void> {
  const patch = network.about.patch[0];
  const opened = await open(async () => {
    const { picture, said } = await readPicture(file, file.name, patch, LARGEST, page.long_side / patch);
    return { picture, saliency: null, classes: null, said };
  });
  if (opened) press(null);
}

function press(button: HTMLElement | null): void {
  for (const other of get("samples").children) other.setAttribute("aria-pressed", String(other === button));
}

// ---- the page is built ----

function buildSamples(): void {
  page.samples.forEach((sample) => {
    const picture = make("img", { src: sample.image, alt: `drawn: ${sample.classes.map(className).join(", ")}` });
    const button = make("button", { type: "button", "aria-pressed": "false" }, picture);
    button.addEventListener("click", () => openSample(sample, button));
    get("samples").append(button);
  });
}

function buildClasses(): void {
  network.about.classes.forEach((name, index) => {
    const id = index + 1;
    const box = make("input", { type: "checkbox", "aria-label": `the picture's words hold ${name}` });
    const button = make("button", { type: "button" }, make("span", {}, name), make("output"));
    box.addEventListener("change", () => {
      if (scene === null) return;
      if (box.checked) scene.present.add(id);
      else scene.present.delete(id);
      redraw();
    });
    button.addEventListener("click", () => {
      if (scene === null) return;
      scene.shown = id;
      redraw();
    });
    const label = make("label", {}, box, swatch(page.colours[id]));
    get("classes").append(make("div", { class: "class", "data-id": String(id) }, label, button));
  });
}

function buildControls(): void {
  controls.add(get("erase-controls"), ERASE);
  controls.addPresets(get("rule-controls"));
  controls.add(get("rule-controls"), MAIN);
  controls.add(get("more-controls"), MORE);
  for (const id of ["brush-size", "brush-value"]) {
    const slider = get<HTMLInputElement>(id);
    const tell = () => (get(`${id}-now`).textContent = slider.value);
    slider.addEventListener("input", tell);
    tell();
  }
}

function acceptFiles(): void {
  const input = get<HTMLInputElement>("file");
  input.addEventListener("change", () => {
    if (input.files?.length) void openFile(input.files[0]);
    input.value = ""; // the same file may be chosen again
  });
  const dragging = (on: boolean) => document.body.classList.toggle("dragging", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    dragging(true);
  });
  document.addEventListener("dragleave", (event) => dragging(event.relatedTarget !== null));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(false);
    const file = event.dataTransfer?.files[0];
    if (file) void openFile(file);
    else say("What was dropped is no file; expected a picture from this machine.", true);
  });
}

async function begin(): Promise<void> {
  page = (await (await fetch("page.json")).json()) as Page;
  get("long-side").textContent = String(page.long_side);
  network = await Network.load("model.onnx", page.long_side);
  buildSamples();
  buildClasses();
  buildControls();
  acceptFiles();
  const [first] = get("samples").children;
  await openSample(page.samples[0], first as HTMLElement);
}

// for the console, and for the tests: what lies behind the panels
Object.assign(globalThis, {
  live: {
    get scene() {
      return scene;
    },
    get labelled() {
      return labelled;
    },
    get rule() {
      return controls.rule;
    },
    get view() {
      return scene === null ? null : network.view(scene.picture);
    },
  },
});

begin().catch((error) => say(`The page could not start: ${error}`, true));
