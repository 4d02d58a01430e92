// The engine of the page without a server: the model runs in this browser. Images are not sent anywhere.

import { asPrediction } from "./answer.js";
import { start } from "./page.js";
import { Problem } from "./problem.js";

let parts = null; // the runtime and the model, for a worker that replaces one that has crashed
let worker = null;
let last = Promise.resolve();

async function fetchPart(address, onBytes) {
  const counted = new TransformStream({ transform(chunk, out) { onBytes(chunk.length); out.enqueue(chunk); } });
  try {
    const response = await fetch(address);
    if (response.ok) return await new Response(response.body.pipeThrough(counted)).blob();
  } catch {
    // The connection has failed, before or during the download: the message is the same.
  }
  throw new Problem(`${address} cannot be loaded: reload this page, or write it again (xserve page)`);
}

async function fetchModel() {
  // Not from the browser's cache: the file names in it decide whether the cached files are still valid.
  const response = await fetch("model.json", { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw new Problem("model.json cannot be loaded. Reload this page, or write it again (xserve page).");
  return response.json();
}

async function load(model, report) {
  const total = model.runtime.bytes + model.file.bytes;
  let done = 0;
  const onBytes = (bytes) => report((done += bytes), total);
  onBytes(0);
  const [runtime, network] = await Promise.all([model.runtime.name, model.file.name].map((name) => fetchPart(name, onBytes)));
  parts = { runtime, model: network };
  await ensureWorker();
}

// A worker has the policy of the address of its code, and file servers send none. A blob has the policy of the page, which
// allows connections to the page's own address only.
function newWorker() {
  const code = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const created = new Worker(address, { type: "module" });
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
    await post({ task: "open", ...parts });
  } catch (problem) {
    stopWorker();
    throw new Problem(`This browser cannot run the model: ${problem.message}`);
  }
}

function stopWorker() {
  worker?.terminate();
  worker = null;
}

async function run(file, model) {
  if (!parts) throw new Problem("the model has not been loaded");
  await ensureWorker();
  return post({ task: "run", file, model, heatmap: model.heatmaps }).catch((problem) => {
    if (problem.hasCrashed) stopWorker(); // the next image gets a new worker
    throw problem;
  });
}

// One image at a time, in order: the worker has one thread.
function predict(file, model) {
  const outputs = last.then(() => run(file, model));
  last = outputs.catch(() => {});
  return outputs.then((arrays) => asPrediction(arrays, model));
}

start({ fetchModel, load, predict, describeDevice: (model) => `this browser (${model.device})`, concurrency: 1 });
