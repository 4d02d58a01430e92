// The engine of the page without a server: the model runs in this browser. Images are not sent anywhere.

import { asPrediction } from "./answer.js";
import { start } from "./page.js";
import { Problem } from "./problem.js";

let parts = null; // the runtime and the model, for a worker that replaces one that has crashed
let worker = null;
let last = Promise.resolve();
let markLoaded = null;
const loaded = new Promise((resolve) => { markLoaded = resolve; });

// The single file has its parts inside, compressed and as text; a folder has them beside the page.
const inside = (name) => document.getElementById(name);
const isSingle = inside("model.json") !== null;

function unpacked(element) {
  const text = atob(element.textContent);
  element.remove(); // its memory is not needed twice
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
}

async function readPart(name, onBytes = () => {}) {
  const element = inside(name);
  const counted = new TransformStream({ transform(chunk, out) { onBytes(chunk.length); out.enqueue(chunk); } });
  try {
    const response = element ? new Response(unpacked(element)) : await fetch(name, { cache: name === "model.json" ? "no-cache" : "default" });
    if (response.ok) return await new Response(response.body.pipeThrough(counted)).blob();
  } catch {
    // The connection has failed, before or during the download, or the text is damaged.
  }
  throw new Problem(isSingle ? "This file is damaged or cut short: copy it again, or write it again (xserve page --single)." : `${name} cannot be loaded: reload this page, or write it again (xserve page)`);
}

// Not from the browser's cache: the file names in it decide whether the cached files are still valid.
const fetchModel = async () => JSON.parse(await (await readPart("model.json")).text());

async function load(model, report) {
  const total = model.runtime.bytes + model.file.bytes;
  let done = 0;
  const onBytes = (bytes) => report((done += bytes), total);
  onBytes(0);
  const names = [model.runtime.name, model.file.name];
  const [runtime, network] = await Promise.all(names.map((name) => readPart(name, onBytes)));
  // A worker has the policy of the address of its code, and file servers send none. A blob has the policy of the page,
  // which allows connections to the page's own address only, or none.
  const code = isSingle ? await readPart("worker.js") : `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
  parts = { code: new Blob([code], { type: "text/javascript" }), runtime, model: network };
  await ensureWorker();
  markLoaded(model);
}

function newWorker() {
  const created = new Worker(URL.createObjectURL(parts.code), { type: isSingle ? "classic" : "module" });
  created.onerror = (event) => { event.preventDefault(); created.reject?.(new Problem("its worker does not start; browsers older than 2023 are not supported")); };
  created.onmessage = ({ data }) => ("problem" in data ? created.reject(Object.assign(new Problem(data.problem), { hasCrashed: data.hasCrashed })) : created.resolve(data.result));
  return created;
}

function post(message) {
  return new Promise((resolve, reject) => {
    Object.assign(worker, { resolve, reject });
    worker.postMessage(message);
  });
}

async function ensureWorker() {
  if (worker) return;
  worker = newWorker();
  try {
    await post({ task: "open", runtime: parts.runtime, model: parts.model });
  } catch (problem) {
    stopWorker();
    throw new Problem(`This browser cannot run the model: ${problem.message}`);
  }
}

function stopWorker() {
  worker?.terminate();
  worker = null;
}

async function run(message) {
  if (!parts) throw new Problem("the model has not been loaded");
  await ensureWorker();
  return post(message).catch((problem) => {
    if (problem.hasCrashed) stopWorker(); // the next image gets a new worker
    throw problem;
  });
}

// One task at a time, in order: the worker has one thread.
function inTurn(message) {
  const done = last.then(() => run(message));
  last = done.catch(() => {});
  return done;
}

const predict = async (file, model) => asPrediction(await inTurn({ task: "run", file, model, heatmap: model.heatmaps }), model);

// A PNG of a file that the browser does not show: DICOM.
const preview = async (file) => inTurn({ task: "preview", file, model: await loaded });

start({ fetchModel, load, predict, preview, describeDevice: (model) => `this browser (${model.device})`, concurrency: 1 });
