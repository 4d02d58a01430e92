// What the model's numbers mean: the same answer that the server gives.

import { drawHeatmap } from "./heatmap.js";
import { Problem } from "./problem.js";

// By the threshold if there is one, else the most probable class; of equals the first.
export function decide(probabilities, facts) {
  const positive = facts.classes.indexOf(facts.positive);
  if (positive >= 0 && probabilities[positive] >= facts.threshold) return positive;
  const others = facts.classes.map((_, at) => at).filter((at) => at !== positive);
  return others.reduce((best, at) => (probabilities[at] > probabilities[best] ? at : best));
}

export async function asAnswer(outputs, facts) {
  const probabilities = [...outputs.probabilities.data];
  if (!probabilities.every(Number.isFinite)) throw new Problem("the model's answer is not a number");
  const chosen = decide(probabilities, facts);
  const distance = outputs.ood?.data[0];
  const ood = Number.isFinite(distance) ? distance : null;
  return {
    label: facts.classes[chosen],
    probabilities: Object.fromEntries(facts.classes.map((name, at) => [name, probabilities[at]])),
    ood,
    ood_threshold: facts.ood_threshold,
    in_distribution: ood === null || facts.ood_threshold === null ? null : ood <= facts.ood_threshold,
    heatmap: outputs.heatmap ? await drawHeatmap(ofClass(outputs.heatmap, chosen), facts.input_size) : null,
  };
}

function ofClass({ data, dims: [, , height, width] }, chosen) {
  const area = height * width;
  return { levels: data.subarray(chosen * area, (chosen + 1) * area), height, width };
}
