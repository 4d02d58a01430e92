// From the model's outputs to the prediction: the same as the server's.

import { drawHeatmap } from "./heatmap.js";
import { Problem } from "./problem.js";

// By the threshold if there is one, else the most probable class; in a tie the first.
export function decide(probabilities, model) {
  const positive = model.classes.indexOf(model.positive);
  if (positive >= 0 && probabilities[positive] >= model.threshold) return positive;
  const others = model.classes.map((_, at) => at).filter((at) => at !== positive);
  return others.reduce((best, at) => (probabilities[at] > probabilities[best] ? at : best));
}

export async function asPrediction(outputs, model) {
  const probabilities = [...outputs.probabilities.data];
  if (!probabilities.every(Number.isFinite)) throw new Problem("the model returned NaN or infinity");
  const chosen = decide(probabilities, model);
  const score = outputs.ood?.data[0];
  const ood = Number.isFinite(score) ? score : null;
  return {
    label: model.classes[chosen],
    probabilities: Object.fromEntries(model.classes.map((name, at) => [name, probabilities[at]])),
    ood,
    ood_threshold: model.ood_threshold,
    in_distribution: ood === null || model.ood_threshold === null ? null : ood <= model.ood_threshold,
    heatmap: outputs.heatmap ? await drawHeatmap(ofClass(outputs.heatmap, chosen), model.input_size) : null,
  };
}

function ofClass({ data, dims: [, , height, width] }, chosen) {
  const area = height * width;
  return { levels: data.subarray(chosen * area, (chosen + 1) * area), height, width };
}
