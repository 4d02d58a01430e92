// The page, for both engines: a server (server.js) or this browser (browser.js). Each image is a request of its own, so
// predictions appear one by one; a server forms batches from several requests.

import { newCard, releaseImages, showPrediction, showProblem, showWaiting } from "./cards.js";
import { COLOURS } from "./colours.js";
import { counted, showModel } from "./model.js";
import { Problem } from "./problem.js";
import { asCsv, showTable } from "./table.js";

const REFRESH_MS = 100;

const $ = (id) => document.getElementById(id);
let rows = []; // {file, element, prediction, problem}, newest first
const waiting = [];
let running = 0;
let pasted = 0;
let engine = null;
let model = null;
let modelLoaded = null;
let refreshTimer = null;

// Starts the page. An engine is {fetchModel(name), predict(file, model), describeDevice(model), concurrency} and optionally
// load(model, report) and preview(file, model). Predictions have the fields of POST /predict, with the heatmap as a Blob.
export function start(chosen) {
  engine = chosen;
  document.getElementById("not-started").remove();
  modelLoaded = loadModel();
}

// The model

async function loadModel(name) {
  try {
    model = await engine.fetchModel(name);
    showModel(model, engine.describeDevice(model));
    await engine.load?.(model, showLoading);
    if (engine.load) $("loading").textContent = "The model is loaded in this browser. No connection is needed any more.";
  } catch (problem) {
    const place = (model && $("loading")) ?? $("classes");
    place.textContent = problem.message;
    place.classList.add("failed");
    if (name && model) $("names").value = model.name; // the previous one is still in use
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
  modelLoaded = loadModel(event.target.value);
});

// Input

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
  const preview = engine.preview && ((file) => engine.preview(file, model));
  const added = files.map((file) => ({ file, element: newCard(file, preview), prediction: null, problem: null }));
  $("results").prepend(...added.map((row) => row.element)); // newest on top, in the order chosen
  rows = [...added, ...rows];
  waiting.push(...added);
  refresh();
  next();
}

function clear() {
  waiting.length = 0;
  rows.forEach((row) => releaseImages(row.element));
  rows = [];
  $("results").replaceChildren();
  refresh();
}

// Requests

function next() {
  while (running < engine.concurrency && waiting.length) {
    const row = waiting.shift();
    running++;
    modelLoaded
      .then(() => checkReadable(row.file))
      .then(() => engine.predict(row.file, model))
      .then((prediction) => rows.includes(row) && showPrediction(row.element, (row.prediction = prediction), model))
      .catch((problem) => rows.includes(row) && fail(row, problem))
      .finally(() => { running--; refresh(); next(); });
  }
}

// Browsers pass folders as files that cannot be read.
async function checkReadable(file) {
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Problem("cannot be read. Folders are not supported: drop the images inside"); });
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

// Summary, table, heatmap

// Delayed, so that several predictions need one update: redrawing a table of a thousand rows for each takes minutes.
function refresh() {
  refreshTimer ??= setTimeout(showAll, REFRESH_MS);
}

function showAll() {
  refreshTimer = null;
  $("summary").hidden = rows.length === 0;
  const labels = new Map();
  for (const { prediction } of rows) if (prediction) labels.set(prediction.label, (labels.get(prediction.label) ?? 0) + 1);
  const failed = rows.filter((row) => row.problem).length;
  const ood = rows.filter((row) => row.prediction?.in_distribution === false).length;
  const done = rows.filter((row) => row.prediction || row.problem).length;
  const classes = model?.classes ?? [...labels.keys()];
  const parts = classes.filter((label) => labels.has(label)).map((label) => `${labels.get(label)} ${label}`);
  if (failed) parts.push(`${failed} without a prediction`);
  if (ood) parts.push(`${ood} out of distribution`);
  const images = counted(rows.length, "image");
  $("status").textContent = done < rows.length ? `${done} of ${images} done…` : `${images}: ${parts.join(", ")}`;
  $("save").disabled = done === 0;
  const asTable = isPressed("view");
  $("results").hidden = asTable;
  $("heat-on").hidden = asTable || !model?.heatmaps;
  $("legend").hidden = $("heat-on").hidden || !isPressed("heat-on") || rows.length === 0;
  $("table").hidden = !asTable || rows.length === 0;
  if (asTable && rows.length) showTable($("table"), rows, classes);
  showMore();
}

const isPressed = (id) => $(id).getAttribute("aria-pressed") === "true";

function toggle(id) {
  $(id).setAttribute("aria-pressed", String(!isPressed(id)));
  document.body.classList.toggle("heat-shown", isPressed("heat-on"));
  showAll();
}

function showOpacity() {
  document.documentElement.style.setProperty("--heat", Number($("heat").value) / 100);
}

function showMore() {
  $("more").hidden = $("table").scrollWidth <= $("table").clientWidth;
}

function save() {
  const link = document.createElement("a");
  // The byte order mark tells spreadsheets that the file is UTF-8.
  link.href = URL.createObjectURL(new Blob(["\ufeff", asCsv(rows, model?.classes ?? [])], { type: "text/csv" }));
  link.download = `${model?.name ?? "predictions"}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("clear").addEventListener("click", () => { clear(); $("files").focus(); });
$("view").addEventListener("click", () => toggle("view"));
$("heat-on").addEventListener("click", () => toggle("heat-on"));
$("save").addEventListener("click", save);
$("heat").addEventListener("input", showOpacity);
showOpacity();
$("ramp").style.backgroundImage = `linear-gradient(to right, ${COLOURS.map((colour) => `#${colour}`)})`;
new ResizeObserver(showMore).observe($("table"));

// It must be possible to turn off single-key shortcuts: speech input can trigger them by accident (WCAG 2.1.4).
// Where the browser stores nothing, the setting lasts as long as the page.
const storage = (() => { try { return localStorage; } catch { return null; } })();
$("shortcuts").checked = storage?.getItem("shortcuts") !== "off";
$("shortcuts").addEventListener("change", (event) => storage?.setItem("shortcuts", event.target.checked ? "on" : "off"));

const KEYS = {
  o: () => $("files").click(),
  t: () => rows.length && toggle("view"),
  h: () => rows.length && !$("heat-on").hidden && toggle("heat-on"),
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range], [type=file], [type=checkbox]), select");
  if (typing || !$("shortcuts").checked || event.ctrlKey || event.metaKey || event.altKey) return;
  KEYS[event.key.toLowerCase()]?.();
});
