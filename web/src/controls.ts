// The switches of the label rule as sliders, boxes and lists.

import { LABEL_RULES, type LabelRule } from "./labels";

type Field = keyof LabelRule;
type Range = { least: number; most: number; step: number };
type Control = { field: Field; text: string } & ({ range: Range; optional?: boolean } | { options: string[] } | { box: true });

const SHARE = { least: 0, most: 1, step: 0.01 };
const PRESETS = Object.keys(LABEL_RULES);

export const ERASE: Control[] = [
  { field: "erase_rate", text: "soft erase, S_r", range: { ...SHARE, least: 0.01 }, optional: true },
];
export const MAIN: Control[] = [
  { field: "background", text: "background's score", options: ["saliency", "binary", "constant"] },
  { field: "fg_thr", text: "least score, fg_thr", range: SHARE },
  { field: "conflict_thr", text: "conflict above, conflict_thr", range: SHARE, optional: true },
  { field: "uncertain", text: "doubt in background", options: ["level", "salient", "off"] },
  { field: "epom", text: "EPOM", box: true },
  { field: "t_fg", text: "strong attention, T_fg", range: SHARE },
];
export const MORE: Control[] = [
  { field: "renormalize", text: "stretch to 1 after soft erase", box: true },
  { field: "background_score", text: "constant background score", range: SHARE },
  { field: "salient_thr", text: "binary saliency above", range: { least: 0, most: 255, step: 1 } },
  { field: "conflict_relative", text: "conflict relative to the highest score", box: true },
  { field: "conflict_min", text: "claims that make a conflict", range: { least: 2, most: 5, step: 1 } },
  { field: "uncertain_without_saliency", text: "doubt even without a saliency map", box: true },
  { field: "uncertain_thr", text: "doubt: attention above", range: SHARE },
  { field: "uncertain_level", text: "doubt: saliency from", range: { least: 1, most: 255, step: 1 } },
  { field: "epom_map", text: "map that EPOM reads", options: ["erased", "raw"] },
  { field: "min_foreground", text: "least share of classes", range: SHARE, optional: true },
];

/** An element with attributes and children. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Fields in which a rule departs from a preset. */
export function departures(rule: LabelRule, preset: string): Field[] {
  const fields = Object.keys(LABEL_RULES[preset]) as Field[];
  return fields.filter((field) => rule[field] !== LABEL_RULES[preset][field]);
}

/** A value that an optional field has where it is on: the one of the first preset that has it on. */
function usual(field: Field): LabelRule[Field] {
  const on = PRESETS.find((name) => LABEL_RULES[name][field] !== null);
  return on === undefined ? 0 : LABEL_RULES[on][field];
}

/** All controls of a rule; `changed` is called with the new rule whenever one moves. */
export class RuleControls {
  private preset = PRESETS[0];
  private readonly refresh: (() => void)[] = [];
  rule: LabelRule = { ...LABEL_RULES[this.preset] };

  constructor(private readonly changed: () => void) {}

  private set(values: Partial<LabelRule>): void {
    this.rule = { ...this.rule, ...values };
    this.refresh.forEach((update) => update());
    this.changed();
  }

  /** The list of presets, and what has been changed since one was chosen. */
  addPresets(place: HTMLElement): void {
    const select = make("select", { id: "preset" }, ...PRESETS.map((name) => make("option", { value: name }, name)));
    const said = make("p", { class: "changed", id: "changed" });
    select.addEventListener("change", () => {
      this.preset = select.value;
      this.set(LABEL_RULES[this.preset]);
    });
    this.refresh.push(() => {
      const fields = departures(this.rule, this.preset);
      said.textContent = fields.length ? `Changed: ${fields.join(", ")}.` : "As the preset has it.";
    });
    place.append(make("label", { for: "preset" }, "preset"), select, said);
  }

  add(place: HTMLElement, controls: Control[]): void {
    for (const control of controls) place.append(this.build(control));
    this.refresh.forEach((update) => update());
  }

  private build(control: Control): HTMLElement {
    const { field, text } = control;
    if ("box" in control) return make("div", { class: "field" }, this.box(field, text, true, false));
    if ("options" in control) {
      const options = control.options.map((name) => make("option", { value: name }, name));
      const select = make("select", { id: field }, ...options);
      select.addEventListener("change", () => this.set({ [field]: select.value }));
      this.refresh.push(() => (select.value = String(this.rule[field])));
      return make("div", { class: "field" }, make("label", { for: field }, text), select);
    }
    const { least, most, step } = control.range;
    const [min, max] = [String(least), String(most)];
    const slider = make("input", { type: "range", id: field, min, max, step: String(step) });
    const now = make("output", { for: field });
    slider.addEventListener("input", () => this.set({ [field]: Number(slider.value) }));
    this.refresh.push(() => {
      const value = this.rule[field];
      slider.disabled = value === null;
      if (value !== null) slider.value = String(value);
      now.textContent = value === null ? "off" : Number(value).toFixed(step < 1 ? 2 : 0);
    });
    const head = control.optional
      ? make("div", { class: "slide" }, this.box(field, text, usual(field), null), now)
      : make("label", { class: "slide", for: field }, make("span", {}, text), now);
    if (control.optional) slider.setAttribute("aria-label", text);
    return make("div", { class: "field" }, head, slider);
  }

  /** A box that sets a field to one of two values. */
  private box(field: Field, text: string, on: LabelRule[Field], off: LabelRule[Field]): HTMLElement {
    const box = make("input", { type: "checkbox", id: `${field}-on` });
    box.addEventListener("change", () => this.set({ [field]: box.checked ? on : off }));
    this.refresh.push(() => (box.checked = this.rule[field] !== off));
    return make("label", {}, box, ` ${text}`);
  }
}
