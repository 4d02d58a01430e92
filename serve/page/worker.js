// The model, off the thread that draws the page. Files come in, numbers go out.

import * as ort from "./onnxruntime.js";
import { decode } from "./decode.js";
import { Problem } from "./problem.js";

let session = null;

const tasks = {
  async open({ runtime, model }) {
    // More threads need SharedArrayBuffer, and that needs headers which plain file servers do not send.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = await runtime.arrayBuffer();
    session = await ort.InferenceSession.create(new Uint8Array(await model.arrayBuffer()));
  },

  async run({ file, side, heatmap }) {
    // The model could resize too, but in floating point, which rounds otherwise here than on a server.
    const image = new ort.Tensor("uint8", await decode(file, side), [1, side, side, 3]);
    const wanted = session.outputNames.filter((name) => name === "probabilities" || name === "ood" || (heatmap && name === "heatmap"));
    const outputs = await session.run({ image }, wanted);
    return Object.fromEntries(wanted.map((name) => [name, { data: outputs[name].data, dims: outputs[name].dims }]));
  },
};

self.onmessage = async ({ data: { task, ...rest } }) => {
  try {
    self.postMessage({ result: await tasks[task](rest) });
  } catch (error) {
    // A problem of the image is no problem of the model.
    self.postMessage({ problem: error.message ?? String(error), ofImage: error instanceof Problem });
  }
};
