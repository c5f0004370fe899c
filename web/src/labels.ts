// Soft erase, the label rule and EPOM (efficient potential object mining) in a browser: `pseudo_label` of the package,
// the same on every pixel. PyTorch computes in the maps' own precision, so each result is rounded to it: `Math.fround`
// for float32. Numbers of a rule are rounded before they meet a value, for the same reason.
//
// A map is a flat array of height x width values, row by row; the maps of a picture are an array of such maps.

import rules from "./rules.json";

export const IGNORE = 255;

export type Map2d = Float32Array | Float64Array;

/** How attention and saliency become a label; `LabelRule` of wegformer/pseudo_labels.py says what each field does. */
export interface LabelRule {
  erase_rate: number | null;
  renormalize: boolean;
  background: "saliency" | "binary" | "constant";
  background_score: number;
  salient_thr: number;
  fg_thr: number;
  conflict_thr: number | null;
  conflict_relative: boolean;
  conflict_min: number;
  uncertain: "level" | "salient" | "off";
  uncertain_without_saliency: boolean;
  uncertain_thr: number;
  uncertain_level: number;
  epom: boolean;
  epom_map: "erased" | "raw";
  t_fg: number;
  min_foreground: number | null;
}

/** The presets, as build.py wrote them from the package. */
export const LABEL_RULES = rules as unknown as Record<string, LabelRule>;

export type Branch = "median" | "quartile" | "plateau" | "empty";

/** What EPOM needs to know of a class: thr of eq. 9, and how it came about. */
export interface Threshold {
  value: number;
  branch: Branch;
}

/** A label and what each step did to it. The counts of pixels that steps ignored do not overlap. */
export interface Labelled {
  label: Uint8Array; // 255 = ignored
  erased: Map2d[]; // the maps after soft erase
  step: Uint8Array; // 3, 5, 6 or 7: the step that ignored the pixel; 0: none did
  conflict: number; // pixels that step 3 ignored
  uncertain: number; // step 5
  epom: number; // step 6
  whole: number; // step 7
  foreground: number; // pixels of classes before step 7
  thresholds: Threshold[]; // of each class; empty where EPOM is off
}

/** Rounds to the precision of a map's values. */
function precision(map: Map2d): (x: number) => number {
  return map instanceof Float32Array ? Math.fround : (x) => x;
}

/** A map cut at `rate` times its own maximum (eqs. 6 and 7), then stretched to a maximum of 1 again. */
export function softErase(map: Map2d, rate: number, renormalize = true): Map2d {
  const round = precision(map);
  let highest = 0;
  for (const a of map) if (a > highest) highest = a;
  const clip = round(highest * round(rate));
  const divisor = renormalize && clip > 0 ? clip : 1; // an all-zero map stays zero
  const erased = map.slice();
  for (let i = 0; i < erased.length; i++) erased[i] = Math.min(erased[i], clip) / divisor; // stored: rounded
  return erased;
}

/** Step 1: the background's score of every pixel. */
function backgroundScores(pixels: number, saliency: Uint8Array | null, rule: LabelRule): Float32Array {
  if (saliency === null || rule.background === "constant") return new Float32Array(pixels).fill(rule.background_score);
  if (rule.background === "binary") return Float32Array.from(saliency, (s) => (s <= rule.salient_thr ? 1 : 0));
  return Float32Array.from(saliency, (s) => 1 - Math.fround(s / 255));
}

/** Steps 1 to 4: who wins each pixel, and 255 where too many claim it. Scores are float32 whatever the maps are. */
function decide(erased: Map2d[], classes: number[], saliency: Uint8Array | null, rule: LabelRule, pixels: number) {
  const label = new Uint8Array(pixels);
  const scores = [backgroundScores(pixels, saliency, rule), ...erased.map((a) => Float32Array.from(a))];
  const least = Math.fround(rule.fg_thr);
  const claim = rule.conflict_thr === null ? Infinity : Math.fround(rule.conflict_thr);
  const relative = rule.conflict_relative && rule.conflict_thr !== null;
  const kept = new Float64Array(scores.length);
  for (let i = 0; i < pixels; i++) {
    let best = 0;
    for (let c = 0; c < scores.length; c++) {
      const score = scores[c][i];
      kept[c] = score >= least ? score : 0; // step 2
      if (kept[c] > kept[best]) best = c; // step 4: ties go to the first
    }
    const above = relative ? Math.fround(claim * kept[best]) : claim;
    let claims = 0;
    for (let c = 0; c < scores.length; c++) if (kept[c] > above) claims++; // step 3
    label[i] = claims >= rule.conflict_min ? IGNORE : best === 0 ? 0 : classes[best - 1];
  }
  return label;
}

/** Step 5: whether saliency or attention casts doubt on a pixel, should it be background. */
function doubts(erased: Map2d[], saliency: Uint8Array | null, rule: LabelRule): (i: number) => boolean {
  if (rule.uncertain === "salient" && saliency !== null) return (i) => saliency[i] > rule.salient_thr;
  if (rule.uncertain !== "level" || (saliency === null && !rule.uncertain_without_saliency)) return () => false;
  const bounds = erased.map((a) => precision(a)(rule.uncertain_thr));
  return (i) =>
    (saliency !== null && saliency[i] >= rule.uncertain_level) || erased.some((a, c) => a[i] > bounds[c]);
}

/** NumPy's median of values that may be reordered: the mean of the two in the middle. */
function median(values: Map2d): number {
  const round = precision(values);
  const half = values.length >> 1;
  values.sort();
  return values.length % 2 ? values[half] : round(round(values[half - 1] + values[half]) / 2);
}

/** Eqs. 9 and 10 for one class; a threshold of 1 means that nothing can be mined. */
export function epomThreshold(label: Uint8Array, map: Map2d, classId: number, tFg: number): Threshold {
  const own = map.filter((_, i) => label[i] === classId);
  if (own.length) return { value: median(own), branch: "median" };
  const bound = precision(map)(tFg);
  const strong = map.filter((a) => a > bound);
  if (!strong.length) return { value: 1, branch: "empty" };
  const middle = median(strong);
  const top = strong.filter((a) => a > middle);
  return top.length ? { value: median(top), branch: "quartile" } : { value: 1, branch: "plateau" };
}

/** Step 6, eq. 8: background pixels above their class's threshold become 255; `label` is changed. */
export function epom(label: Uint8Array, maps: Map2d[], classes: number[], tFg: number): Threshold[] {
  const thresholds = maps.map((a, c) => epomThreshold(label, a, classes[c], tFg)); // all, before any pixel changes
  for (let i = 0; i < label.length; i++)
    if (label[i] === 0 && maps.some((a, c) => a[i] > thresholds[c].value)) label[i] = IGNORE;
  return thresholds;
}

/** The pseudo label of a picture, with what each step did: steps 1 to 7. */
export function labelWithSteps(
  attention: Map2d[], // for each class of the picture, values in [0, 1], not erased
  classes: number[], // their ids, 1..254, all different
  saliency: Uint8Array | null, // of every pixel, or null
  rule: LabelRule,
  pixels = attention[0].length, // must be given where the picture has no class
): Labelled {
  const rate = rule.erase_rate;
  const erased = rate === null ? attention : attention.map((a) => softErase(a, rate, rule.renormalize));
  const label = decide(erased, classes, saliency, rule, pixels);
  const step = new Uint8Array(pixels);
  const counts = new Array<number>(8).fill(0);
  const mark = (number: number) => {
    for (let i = 0; i < pixels; i++)
      if (label[i] === IGNORE && step[i] === 0) {
        step[i] = number;
        counts[number]++;
      }
  };
  mark(3);
  const inDoubt = doubts(erased, saliency, rule);
  for (let i = 0; i < pixels; i++) if (label[i] === 0 && inDoubt(i)) label[i] = IGNORE;
  mark(5);
  let thresholds: Threshold[] = [];
  if (rule.epom) thresholds = epom(label, rule.epom_map === "raw" ? attention : erased, classes, rule.t_fg);
  mark(6);
  let foreground = 0;
  for (const c of label) if (c !== 0 && c !== IGNORE) foreground++;
  if (rule.min_foreground !== null && foreground / pixels < rule.min_foreground) label.fill(IGNORE);
  mark(7);
  const [, , , conflict, , uncertain, mined, whole] = counts;
  return { label, erased, step, conflict, uncertain, epom: mined, whole, foreground, thresholds };
}
