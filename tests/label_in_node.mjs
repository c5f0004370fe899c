// Answers each line of its input, a case as JSON, with the pseudo label that the module named on the command line gives.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { LABEL_RULES, labelWithSteps } = await import(pathToFileURL(process.argv[2]).href);
for await (const line of createInterface({ input: process.stdin })) {
  const { maps, double, classes, saliency, rule, pixels } = JSON.parse(line);
  const Kind = double ? Float64Array : Float32Array;
  const chosen = typeof rule === "string" ? LABEL_RULES[rule] : rule;
  const attention = maps.map((a) => Kind.from(a));
  const found = labelWithSteps(attention, classes, saliency && Uint8Array.from(saliency), chosen, pixels);
  const untouched = attention.every((a, c) => a.every((v, i) => v === maps[c][i]));
  const [label, erased] = [[...found.label], found.erased.map((a) => [...a])];
  console.log(JSON.stringify({ ...found, label, erased, step: [...found.step], untouched }));
}
