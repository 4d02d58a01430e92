// One card an image: the picture with its heatmap, the decision, a bar a class, a word about how familiar it is.

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

// `preview`: an engine's way to a picture of a file that the browser cannot show, if it has one.
export function newCard(file, preview) {
  const element = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const image = element.querySelector(".image");
  const picture = element.querySelector(".picture");
  image.onerror = () => showPreview(image, picture, preview?.(file) ?? Promise.reject());
  image.src = URL.createObjectURL(file);
  picture.setAttribute("aria-label", `Enlarge ${file.name}`);
  picture.addEventListener("click", () => {
    picture.setAttribute("aria-expanded", String(element.classList.toggle("large")));
  });
  element.querySelector("h2").textContent = file.name;
  showWaiting(element);
  return element;
}

async function showPreview(image, picture, found) {
  const none = () => picture.replaceWith(textElement("span", "no preview"));
  image.onerror = none;
  URL.revokeObjectURL(image.src);
  await found.then((picture) => { image.src = URL.createObjectURL(picture); }, none);
}

export function showWaiting(element) {
  element.classList.remove("failed");
  element.classList.add("waiting");
  element.querySelector(".again").hidden = true;
  element.querySelector(".decision").textContent = "waiting…";
}

export function forget(element) {
  for (const image of element.querySelectorAll("img")) URL.revokeObjectURL(image.src);
}

export function showAnswer(element, answer, model) {
  element.classList.remove("waiting");
  const decision = element.querySelector(".decision");
  decision.textContent = answer.label;
  const likeliest = Object.entries(answer.probabilities).reduce((best, entry) => (entry[1] > best[1] ? entry : best));
  if (model && model.threshold !== null && likeliest[0] !== answer.label) {
    decision.append(" ", textElement("small", answer.label === model.positive
      ? `reaches its threshold of ${percent(model.threshold)}, though ${likeliest[0]} is more probable`
      : `${likeliest[0]} is more probable, but below its threshold of ${percent(model.threshold)}`));
  }
  const bars = Object.entries(answer.probabilities).map(([name, share]) => newBar(name, share, name === answer.label, model));
  element.querySelector(".bars").replaceChildren(...bars);
  showFamiliarity(element, answer);
  showHeatmap(element, answer);
}

// How much the answer can be worth, in words: nobody should have to know what a Mahalanobis distance is.
export function familiarity(answer) {
  if (answer.ood === null) return "";
  const distance = answer.ood.toFixed(2);
  if (answer.in_distribution === null) return `Distance from the training images: ${distance}. The larger, the less the answer is worth.`;
  const limit = answer.ood_threshold.toFixed(2);
  return answer.in_distribution
    ? `Resembles the training images (distance ${distance}, limit ${limit}).`
    : `Unlike the training images: distance ${distance}, limit ${limit}. Do not rely on this answer.`;
}

function showFamiliarity(element, answer) {
  const remark = element.querySelector(".remark");
  remark.textContent = familiarity(answer);
  remark.hidden = remark.textContent === "";
  remark.classList.toggle("foreign", answer.in_distribution === false);
  element.classList.toggle("unfamiliar", answer.in_distribution === false);
}

function showHeatmap(element, answer) {
  const heat = element.querySelector(".heat");
  if (!heat || !answer.heatmap) return;
  heat.src = URL.createObjectURL(answer.heatmap);
  heat.alt = `Where the network saw ${answer.label}`;
  heat.hidden = false;
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

export function showProblem(element, problem, tryAgain) {
  element.classList.remove("waiting");
  element.classList.add("failed");
  element.querySelector(".decision").textContent = `No answer: ${problem.message}`;
  const again = element.querySelector(".again");
  again.hidden = !problem.again;
  again.onclick = tryAgain;
}
