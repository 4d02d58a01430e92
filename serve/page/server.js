// The engine of the page with a server: sends one image per request, and the API key if the server requires one.

import { start } from "./page.js";
import { Problem } from "./problem.js";

const MAX_TRIES_WHEN_BUSY = 60;
const FORM_OVERHEAD_BYTES = 2048;

let key = sessionStorage.getItem("key") ?? "";
let keyEntered = null;

// Shows the form once, however many requests wait for the key; resolves when a key has been entered.
function askForKey() {
  keyEntered ??= new Promise((resolve) => {
    const form = document.getElementById("key-form");
    form.hidden = false;
    form.elements.key.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      key = form.elements.key.value.trim();
      sessionStorage.setItem("key", key);
      form.hidden = true;
      keyEntered = null;
      resolve();
    };
  });
  return keyEntered;
}

async function call(address, options = {}) {
  for (;;) {
    const tried = key;
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch(address, { ...options, headers }).catch(() => {
      throw new Problem("the server does not respond", true);
    });
    if (response.status !== 401) return response;
    if (key === tried) await askForKey();
  }
}

async function fetchModel(name) {
  const response = await call(name ? `model?model=${encodeURIComponent(name)}` : "model").catch(() => {
    throw new Problem("The server does not respond. Reload this page when it is running.");
  });
  if (!response.ok) throw new Problem((await response.json().catch(() => ({}))).error ?? "The server has no such model.");
  return response.json();
}

async function predict(file, model) {
  const limit = model?.limits.max_body_bytes ?? Infinity;
  if (file.size + FORM_OVERHEAD_BYTES > limit) throw new Problem(`larger than ${Math.floor(limit / 2 ** 20)} MiB, the limit of this server`);
  const query = new URLSearchParams({ heatmap: model?.heatmaps ? "1" : "0", ...(model ? { model: model.name } : {}) });
  for (let attempt = 0; ; attempt++) {
    const form = new FormData();
    form.append("files", file);
    const response = await call(`predict?${query}`, { method: "POST", body: form });
    const body = await response.json().catch(() => ({}));
    if (response.ok) return withHeatmap(body.predictions[0]);
    if (response.status !== 503 || attempt >= MAX_TRIES_WHEN_BUSY) {
      throw new Problem(body.skipped?.[0]?.reason ?? body.error ?? `error ${response.status}`, response.status >= 500);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
  }
}

function withHeatmap(prediction) {
  if (!prediction.heatmap) return prediction;
  const bytes = Uint8Array.from(atob(prediction.heatmap), (letter) => letter.charCodeAt(0));
  return { ...prediction, heatmap: new Blob([bytes], { type: "image/png" }) };
}

// A PNG of a file that the browser cannot show, such as DICOM.
async function preview(file, model) {
  const query = new URLSearchParams(model ? { model: model.name } : {});
  const response = await call(`preview?${query}`, { method: "POST", body: file });
  if (!response.ok) throw new Problem("no preview");
  return response.blob();
}

start({ fetchModel, predict, preview, describeDevice: (model) => `this server (${model.device})`, concurrency: 4 });
