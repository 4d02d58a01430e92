// The engine of the page with a server: which model, one image at a time, and the key if it wants one.

import { start } from "./page.js";
import { Problem } from "./problem.js";

const TRIES_WHEN_BUSY = 60;
const FORM_OVERHEAD_BYTES = 2048;

let key = sessionStorage.getItem("key") ?? "";
let asked = null;

// Asks once however many requests wait for the key, and goes on when it has been given.
function askForKey() {
  asked ??= new Promise((given) => {
    const form = document.getElementById("key-form");
    form.hidden = false;
    form.elements.key.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      key = form.elements.key.value.trim();
      sessionStorage.setItem("key", key);
      form.hidden = true;
      asked = null;
      given();
    };
  });
  return asked;
}

async function call(address, options = {}) {
  for (;;) {
    const tried = key;
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch(address, { ...options, headers }).catch(() => {
      throw new Problem("the server does not answer", true);
    });
    if (response.status !== 401) return response;
    if (key === tried) await askForKey();
  }
}

async function askModel(name) {
  const response = await call(name ? `model?model=${encodeURIComponent(name)}` : "model").catch(() => {
    throw new Problem("The server does not answer. Reload the page when it runs.");
  });
  if (!response.ok) throw new Problem("The server has no such model.");
  return response.json();
}

async function ask(file, model) {
  const limit = model?.limits.max_body_bytes ?? Infinity;
  if (file.size + FORM_OVERHEAD_BYTES > limit) throw new Problem(`larger than ${Math.floor(limit / 2 ** 20)} MiB, the limit of this server`);
  const query = new URLSearchParams({ heatmap: model?.heatmaps ? "1" : "0", ...(model ? { model: model.name } : {}) });
  for (let attempt = 0; ; attempt++) {
    const body = new FormData();
    body.append("files", file);
    const response = await call(`predict?${query}`, { method: "POST", body });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return withPicture(answer.predictions[0]);
    if (response.status !== 503 || attempt >= TRIES_WHEN_BUSY) {
      throw new Problem(answer.skipped?.[0]?.reason ?? answer.error ?? `error ${response.status}`, response.status >= 500);
    }
    await new Promise((wake) => setTimeout(wake, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
  }
}

function withPicture(answer) {
  if (!answer.heatmap) return answer;
  const bytes = Uint8Array.from(atob(answer.heatmap), (letter) => letter.charCodeAt(0));
  return { ...answer, heatmap: new Blob([bytes], { type: "image/png" }) };
}

// A picture of a file that the browser cannot show, such as DICOM.
async function preview(file) {
  const response = await call("preview", { method: "POST", body: file });
  if (!response.ok) throw new Problem("no preview");
  return response.blob();
}

start({ askModel, ask, preview, whereabouts: (model) => `this server (${model.device})`, atOnce: 4 });
