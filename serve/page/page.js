// The page, whatever answers: a server (server.js) or this browser (browser.js). Each image is asked about on its own, so
// answers appear as they come; a server forms batches across requests.

import { forget, newCard, showAnswer, showProblem, showWaiting } from "./cards.js";
import { counted, showModel } from "./model.js";
import { Problem } from "./problem.js";
import { asCsv, showTable } from "./table.js";

const REFRESH_MS = 100;

const $ = (id) => document.getElementById(id);
let rows = []; // {file, element, answer, problem}, newest first
const waiting = [];
let running = 0;
let pasted = 0;
let engine = null;
let model = null;
let modelKnown = null;
let pending = null;

// Starts the page. An engine is {askModel(name), ask(file, model), whereabouts(model), atOnce} and, where it has them,
// load(model, report) and preview(file). Answers have the fields that POST /predict gives, with the heatmap as a Blob.
export function start(chosen) {
  engine = chosen;
  document.getElementById("unstarted").remove();
  modelKnown = learnModel();
}

// Which model

async function learnModel(name) {
  try {
    model = await engine.askModel(name);
    showModel(model, engine.whereabouts(model));
    await engine.load?.(model, showLoading);
    if (engine.load) $("loading").textContent = "The model is in this browser now: it needs no connection any more.";
  } catch (problem) {
    const place = (model && $("loading")) ?? $("classes");
    place.textContent = problem.message;
    place.classList.add("failed");
    if (name && model) $("names").value = model.name; // the one that goes on answering
  }
}

function showLoading(done, total) {
  $("loading").hidden = false;
  $("progress").max = total;
  $("progress").value = done;
  $("loaded").textContent = `${Math.floor(done / 2 ** 20)} of ${Math.ceil(total / 2 ** 20)} MiB`;
}

$("names").addEventListener("change", (event) => {
  clear();
  modelKnown = learnModel(event.target.value);
});

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

function addFiles(files) {
  const added = files.map((file) => ({ file, element: newCard(file, engine.preview), answer: null, problem: null }));
  $("results").prepend(...added.map((row) => row.element)); // newest on top, in the order chosen
  rows = [...added, ...rows];
  waiting.push(...added);
  refresh();
  next();
}

function clear() {
  waiting.length = 0;
  rows.forEach((row) => forget(row.element));
  rows = [];
  $("results").replaceChildren();
  refresh();
}

// What goes out

function next() {
  while (running < engine.atOnce && waiting.length) {
    const row = waiting.shift();
    running++;
    modelKnown
      .then(() => checkReadable(row.file))
      .then(() => engine.ask(row.file, model))
      .then((answer) => rows.includes(row) && showAnswer(row.element, (row.answer = answer), model))
      .catch((problem) => rows.includes(row) && fail(row, problem))
      .finally(() => { running--; refresh(); next(); });
  }
}

// Browsers hand over folders as files that cannot be read.
async function checkReadable(file) {
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Problem("cannot be read. Folders are not taken: drop the images in them"); });
}

function fail(row, problem) {
  row.problem = problem.message;
  showProblem(row.element, problem, () => {
    row.problem = null;
    showWaiting(row.element);
    waiting.push(row);
    refresh();
    next();
  });
}

// What is shown of all

// Soon, and once for all answers that come until then: a table of a thousand rows drawn anew for each takes minutes.
function refresh() {
  pending ??= setTimeout(showAll, REFRESH_MS);
}

function showAll() {
  pending = null;
  $("tally").hidden = rows.length === 0;
  const labels = new Map();
  for (const { answer } of rows) if (answer) labels.set(answer.label, (labels.get(answer.label) ?? 0) + 1);
  const failed = rows.filter((row) => row.problem).length;
  const foreign = rows.filter((row) => row.answer?.in_distribution === false).length;
  const done = rows.filter((row) => row.answer || row.problem).length;
  const known = model?.classes ?? [...labels.keys()];
  const parts = known.filter((label) => labels.has(label)).map((label) => `${labels.get(label)} ${label}`);
  if (failed) parts.push(`${failed} without an answer`);
  if (foreign) parts.push(`${foreign} unlike the training images`);
  const images = counted(rows.length, "image");
  $("status").textContent = done < rows.length ? `${done} of ${images} answered…` : `${images}: ${parts.join(", ")}`;
  $("save").disabled = done === 0;
  const asTable = $("view").getAttribute("aria-pressed") === "true";
  $("results").hidden = asTable;
  $("table").hidden = !asTable || rows.length === 0;
  if (asTable && rows.length) showTable($("table"), rows, known);
}

function toggleTable() {
  $("view").setAttribute("aria-pressed", String($("view").getAttribute("aria-pressed") !== "true"));
  showAll();
}

function showHeat() {
  document.documentElement.style.setProperty("--heat", Number($("heat").value) / 100);
}

function save() {
  const link = document.createElement("a");
  // The mark at the front tells spreadsheets that it is UTF-8.
  link.href = URL.createObjectURL(new Blob(["\ufeff", asCsv(rows, model?.classes ?? [])], { type: "text/csv" }));
  link.download = `${model?.name ?? "predictions"}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("clear").addEventListener("click", () => { clear(); $("files").focus(); });
$("view").addEventListener("click", toggleTable);
$("save").addEventListener("click", save);
$("heat").addEventListener("input", showHeat);
showHeat();

// Single keys must be possible to turn off: people who speak to their computer press them by accident (WCAG 2.1.4).
$("shortcuts").checked = localStorage.getItem("shortcuts") !== "off";
$("shortcuts").addEventListener("change", (event) => localStorage.setItem("shortcuts", event.target.checked ? "on" : "off"));

const KEYS = {
  o: () => $("files").click(),
  t: () => rows.length && toggleTable(),
  h: () => { $("heat").value = Number($("heat").value) > 0 ? 0 : 50; showHeat(); },
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range], [type=file], [type=checkbox]), select");
  if (typing || !$("shortcuts").checked || event.ctrlKey || event.metaKey || event.altKey) return;
  KEYS[event.key.toLowerCase()]?.();
});
