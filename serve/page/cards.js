// One card per image: the image with its heatmap, the predicted class, one bar per class, and the out-of-distribution score.

import { boxOf } from "./box.js";

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(share * 100).toFixed(1)} %`;
}

export function textElement(name, text, className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  element.className = className;
  return element;
}

// `preview`: returns a picture of a file that the browser cannot show; undefined if the engine has no previews.
export function newCard(file, preview) {
  const element = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const image = element.querySelector(".image");
  const picture = element.querySelector(".picture");
  image.onerror = () => showPreview(image, picture, preview?.(file) ?? Promise.reject());
  image.onload = () => picture.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  image.src = URL.createObjectURL(file);
  picture.setAttribute("aria-label", `Enlarge ${file.name}`);
  picture.addEventListener("click", () => {
    picture.setAttribute("aria-expanded", String(element.classList.toggle("large")));
  });
  element.querySelector("h2").textContent = file.name;
  showWaiting(element);
  return element;
}

async function showPreview(image, picture, preview) {
  const showNone = () => picture.parentElement.replaceChildren(textElement("span", "no preview"));
  image.onerror = showNone;
  URL.revokeObjectURL(image.src);
  await preview.then((png) => { image.src = URL.createObjectURL(png); }, showNone);
}

export function showWaiting(element) {
  element.classList.remove("failed");
  element.classList.add("waiting");
  element.querySelector(".retry").hidden = true;
  element.querySelector(".decision").textContent = "waiting…";
}

export function releaseImages(element) {
  for (const image of element.querySelectorAll("img")) URL.revokeObjectURL(image.src);
}

export function showPrediction(element, prediction, model) {
  element.classList.remove("waiting");
  const decision = element.querySelector(".decision");
  decision.textContent = prediction.label;
  const [mostProbable] = Object.entries(prediction.probabilities).reduce((best, entry) => (entry[1] > best[1] ? entry : best));
  if (model && model.threshold !== null && mostProbable !== prediction.label) {
    decision.append(" ", textElement("small", prediction.label === model.positive
      ? `above its threshold of ${percent(model.threshold)}, although ${mostProbable} is more probable`
      : `${mostProbable} is more probable, but below its threshold of ${percent(model.threshold)}`));
  }
  const bars = Object.entries(prediction.probabilities).map(([name, share]) => newBar(name, share, name === prediction.label, model));
  element.querySelector(".bars").replaceChildren(...bars);
  showOod(element, prediction);
  showHeatmap(element, prediction, model);
}

// The out-of-distribution score as a sentence.
export function oodText({ ood, ood_threshold, in_distribution }) {
  if (ood === null) return "";
  if (in_distribution === null) return `Out-of-distribution score ${ood.toFixed(2)}, without a threshold. The higher, the less reliable the prediction.`;
  // Digits enough to show which one is larger.
  const digits = [2, 3, 4, 5].find((count) => ood.toFixed(count) !== ood_threshold.toFixed(count)) ?? 6;
  const comparison = `score ${ood.toFixed(digits)}, threshold ${ood_threshold.toFixed(digits)}`;
  return in_distribution
    ? `No sign of being out of distribution (not a proof): ${comparison}.`
    : `Out of distribution: ${comparison}. Do not rely on this prediction.`;
}

function showOod(element, prediction) {
  const remark = element.querySelector(".remark");
  remark.textContent = oodText(prediction);
  remark.hidden = remark.textContent === "";
  remark.classList.toggle("ood", prediction.in_distribution === false);
}

function showHeatmap(element, prediction, model) {
  const heat = element.querySelector(".heat");
  if (!heat || !prediction.heatmap) return;
  heat.src = URL.createObjectURL(prediction.heatmap);
  heat.hidden = false;
  const name = element.querySelector(".heat-class");
  name.textContent = `Heatmap for ${prediction.label}`;
  name.hidden = false;
  const image = element.querySelector(".image");
  const place = () => {
    const box = boxOf(image.naturalWidth, image.naturalHeight, model);
    const percentOf = (length, whole) => `${(100 * length) / whole}%`;
    heat.style.left = percentOf(box.left, image.naturalWidth);
    heat.style.top = percentOf(box.top, image.naturalHeight);
    heat.style.width = percentOf(box.width, image.naturalWidth);
    heat.style.height = percentOf(box.height, image.naturalHeight);
  };
  if (image.naturalWidth) place();
  else image.addEventListener("load", place, { once: true });
}

function newBar(name, share, chosen, model) {
  const bar = document.getElementById("bar").content.firstElementChild.cloneNode(true);
  bar.classList.toggle("chosen", chosen);
  bar.querySelector(".name").textContent = name;
  bar.querySelector(".percent").textContent = percent(share);
  bar.querySelector(".fill").style.width = `${share * 100}%`;
  if (model && name === model.positive) {
    const mark = bar.querySelector(".mark");
    mark.hidden = false;
    mark.style.left = `${model.threshold * 100}%`;
    bar.querySelector(".track").title = `threshold ${percent(model.threshold)}`;
  }
  return bar;
}

export function showProblem(element, problem, retry) {
  element.classList.remove("waiting");
  element.classList.add("failed");
  element.querySelector(".decision").textContent = `No prediction: ${problem.message}`;
  const button = element.querySelector(".retry");
  button.hidden = !problem.canRetry;
  button.onclick = retry;
}
