// The engine of the page without a server: the model runs in this browser. No image leaves it.

import { asAnswer } from "./answer.js";
import { start } from "./page.js";
import { Problem } from "./problem.js";

let parts = null; // the runtime and the model, kept for a worker that takes the place of one that has died
let worker = null;
let last = Promise.resolve();

async function fetchPart(address, onBytes) {
  const counted = new TransformStream({ transform(chunk, out) { onBytes(chunk.length); out.enqueue(chunk); } });
  try {
    const response = await fetch(address);
    if (response.ok) return await new Response(response.body.pipeThrough(counted)).blob();
  } catch {
    // The connection has failed, before or on the way: the same to whoever waits.
  }
  throw new Problem(`${address} cannot be loaded: reload this page, or write it again (xserve page)`);
}

async function askModel() {
  // Asked for anew each time: the names in it tell whether what the browser has kept is still right.
  const response = await fetch("model.json", { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw new Problem("model.json cannot be loaded. Reload this page, or write it again (xserve page).");
  return response.json();
}

async function load(facts, report) {
  const total = facts.runtime.bytes + facts.file.bytes;
  let done = 0;
  const onBytes = (bytes) => report((done += bytes), total);
  onBytes(0);
  const [runtime, model] = await Promise.all([facts.runtime.name, facts.file.name].map((name) => fetchPart(name, onBytes)));
  parts = { runtime, model };
  await ready();
}

// A worker takes the policy of the address that its code comes from, and a file server sends none: from a blob it takes
// the page's, which lets it connect to nowhere else.
function newWorker() {
  const code = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const made = new Worker(address, { type: "module" });
  made.onerror = (event) => { event.preventDefault(); made.reject?.(new Problem("its worker does not start, as in browsers from before 2023")); };
  made.onmessage = ({ data }) => ("problem" in data ? made.reject(Object.assign(new Problem(data.problem), { isDead: data.isDead })) : made.resolve(data.result));
  return made;
}

function post(message) {
  return new Promise((resolve, reject) => {
    Object.assign(worker, { resolve, reject });
    worker.postMessage(message);
  });
}

async function ready() {
  if (worker) return;
  worker = newWorker();
  try {
    await post({ task: "open", ...parts });
  } catch (problem) {
    giveUp();
    throw new Problem(`This browser cannot run the model: ${problem.message}`);
  }
}

function giveUp() {
  worker?.terminate();
  worker = null;
}

async function run(file, facts) {
  if (!parts) throw new Problem("the model has not been loaded");
  await ready();
  return post({ task: "run", file, side: facts.input_size, heatmap: facts.heatmaps }).catch((problem) => {
    if (problem.isDead) giveUp(); // the next image gets a new worker
    throw problem;
  });
}

// One image at a time, in order: the worker has one thread.
function ask(file, facts) {
  const outputs = last.then(() => run(file, facts));
  last = outputs.catch(() => {});
  return outputs.then((numbers) => asAnswer(numbers, facts));
}

start({ askModel, load, ask, whereabouts: (model) => `this browser (${model.device})`, atOnce: 1 });
