// Each image is a request of its own: answers appear as they come, and the server forms batches across requests.

const AT_ONCE = 4;
const TRIES_WHEN_BUSY = 60;
const FORM_OVERHEAD_BYTES = 2048;

const $ = (id) => document.getElementById(id);
const waiting = [];
const tally = { total: 0, labels: new Map(), failed: 0 };
let running = 0;
let generation = 0;
let pasted = 0;
let model = null;

const modelKnown = fetch("model")
  .then((response) => (response.ok ? response.json() : Promise.reject(new Error())))
  .then((facts) => showModel((model = facts)))
  .catch(() => { $("classes").textContent = "The server does not answer. Reload the page when it runs."; });

function showModel(facts) {
  const limit = `up to ${Math.floor(facts.limits.max_body_bytes / 2 ** 20)} MiB each`;
  $("classes").textContent = new Intl.ListFormat("en-GB", { type: "disjunction" }).format(facts.classes);
  $("formats").textContent = `JPEG, PNG, BMP, TIFF or WebP, ${limit}`;
  const accuracy = facts.test_accuracy === null ? null : percent(facts.test_accuracy);
  const rows = [
    ["Model", facts.model],
    ["Run", facts.run],
    ["Backbone", `${facts.backbone}, ${facts.input_size} × ${facts.input_size}`],
    ["Test accuracy", accuracy && facts.test_images ? `${accuracy} of ${facts.test_images} images` : accuracy],
    ["Decision", facts.positive === null ? "the most probable class" : `${facts.positive} from ${percent(facts.threshold)}, the mark on its bar`],
  ];
  for (const [name, value] of rows) {
    if (!value) continue;
    const row = document.createElement("div");
    row.append(textElement("dt", name), textElement("dd", value));
    $("facts").append(row);
  }
}

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(share * 100).toFixed(1)} %`;
}

function textElement(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

// What comes in

$("files").addEventListener("change", (event) => {
  addFiles([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});

document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  // Browsers call every pasted picture image.png.
  addFiles(files.map((file) => (file.name === "image.png" ? new File([file], `pasted image ${++pasted}.png`, { type: file.type }) : file)));
});

let depth = 0;
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++depth > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  addFiles([...event.dataTransfer.files]);
});

$("clear").addEventListener("click", () => {
  generation++;
  waiting.length = 0;
  for (const image of $("results").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("results").replaceChildren();
  Object.assign(tally, { total: 0, labels: new Map(), failed: 0 });
  showTally();
  $("files").focus();
});

function addFiles(files) {
  const cards = files.map((file) => ({ file, element: newCard(file), generation }));
  $("results").prepend(...cards.map((card) => card.element)); // newest on top, in the order chosen
  tally.total += cards.length;
  waiting.push(...cards);
  showTally();
  next();
}

function newCard(file) {
  const element = $("card").content.firstElementChild.cloneNode(true);
  const image = element.querySelector("img");
  image.addEventListener("error", () => image.replaceWith(textElement("span", "no preview")));
  image.src = URL.createObjectURL(file);
  element.querySelector("h2").textContent = file.name;
  element.querySelector(".decision").textContent = "waiting…";
  element.classList.add("waiting");
  return element;
}

// What goes out

function next() {
  while (running < AT_ONCE && waiting.length) {
    const card = waiting.shift();
    running++;
    modelKnown
      .then(() => ask(card.file))
      .then((answer) => current(card) && showAnswer(card, answer))
      .catch((problem) => current(card) && showProblem(card, problem))
      .finally(() => { running--; showTally(); next(); });
  }
}

const current = (card) => card.generation === generation;

class Problem extends Error {
  constructor(message, again = false) {
    super(message);
    this.again = again;
  }
}

async function ask(file) {
  const limit = model?.limits.max_body_bytes ?? Infinity;
  if (file.size + FORM_OVERHEAD_BYTES > limit) throw new Problem(`larger than ${Math.floor(limit / 2 ** 20)} MiB, the limit of this server`);
  // Browsers hand over folders as files that cannot be read.
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Problem("cannot be read. Folders are not taken: drop the images in them"); });
  for (let attempt = 0; ; attempt++) {
    const body = new FormData();
    body.append("files", file);
    const response = await fetch("predict", { method: "POST", body }).catch(() => {
      throw new Problem("the server does not answer", true);
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer.predictions[0];
    if (response.status !== 503 || attempt >= TRIES_WHEN_BUSY) {
      throw new Problem(answer.skipped?.[0]?.reason ?? answer.error ?? `error ${response.status}`, response.status >= 500);
    }
    await new Promise((wake) => setTimeout(wake, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
  }
}

// What is shown

function showAnswer({ element }, answer) {
  element.classList.remove("waiting");
  const decision = element.querySelector(".decision");
  decision.textContent = answer.label;
  const likeliest = Object.entries(answer.probabilities).reduce((best, entry) => (entry[1] > best[1] ? entry : best));
  if (model && model.threshold !== null && likeliest[0] !== answer.label) {
    decision.append(" ", textElement("small", answer.label === model.positive
      ? `reaches its threshold of ${percent(model.threshold)}, though ${likeliest[0]} is more probable`
      : `${likeliest[0]} is more probable, but below its threshold of ${percent(model.threshold)}`));
  }
  const bars = Object.entries(answer.probabilities).map(([name, share]) => newBar(name, share, name === answer.label));
  element.querySelector(".bars").replaceChildren(...bars);
  if (answer.ood !== null) {
    const remark = element.querySelector(".remark");
    remark.textContent = `Distance from the training images: ${answer.ood.toFixed(2)}. The larger, the less the answer is worth.`;
    remark.hidden = false;
  }
  tally.labels.set(answer.label, (tally.labels.get(answer.label) ?? 0) + 1);
}

function newBar(name, share, chosen) {
  const bar = $("bar").content.firstElementChild.cloneNode(true);
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

function showProblem(card, problem) {
  const { element } = card;
  element.classList.remove("waiting");
  element.classList.add("failed");
  element.querySelector(".decision").textContent = `No answer: ${problem.message}`;
  tally.failed++;
  const again = element.querySelector(".again");
  again.hidden = !problem.again;
  again.onclick = () => {
    again.hidden = true;
    element.classList.replace("failed", "waiting");
    element.querySelector(".decision").textContent = "waiting…";
    tally.failed--;
    waiting.push(card);
    showTally();
    next();
  };
}

function showTally() {
  $("tally").hidden = tally.total === 0;
  const done = [...tally.labels.values()].reduce((sum, number) => sum + number, 0) + tally.failed;
  const known = model?.classes ?? [...tally.labels.keys()];
  const parts = known.filter((label) => tally.labels.has(label)).map((label) => `${tally.labels.get(label)} ${label}`);
  if (tally.failed) parts.push(`${tally.failed} without an answer`);
  const images = tally.total === 1 ? "1 image" : `${tally.total} images`;
  $("status").textContent = done < tally.total ? `${done} of ${images} answered…` : `${images}: ${parts.join(", ")}`;
}
