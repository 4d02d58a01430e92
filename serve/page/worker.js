// The model, in a thread of its own. Files come in, arrays go out.

import * as ort from "./onnxruntime.js";
import { decode, preview } from "./decode.js";
import { Problem } from "./problem.js";

let session = null;

const tasks = {
  async open({ runtime, model }) {
    // More threads need SharedArrayBuffer, and that needs HTTP headers which plain file servers do not send.
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    ort.env.wasm.wasmBinary = await runtime.arrayBuffer();
    // Without a warning that the input threshold may be left out.
    session = await ort.InferenceSession.create(new Uint8Array(await model.arrayBuffer()), { logSeverityLevel: 3 });
  },

  async run({ file, model, heatmap }) {
    // The model can resize too, but in floating point, and that is rounded differently here than on a server.
    const pixels = await decode(file, model);
    const wanted = session.outputNames.filter((name) => name === "probabilities" || name === "ood" || (heatmap && name === "heatmap"));
    try {
      return await infer(pixels, model, wanted);
    } catch (error) {
      console.error(error);
      // After a crash WebAssembly fails on every image, even on a black one.
      const hasCrashed = await infer(new Uint8Array(pixels.length), model, wanted).then(() => false, () => true);
      throw Object.assign(new Problem("the model failed on it"), { hasCrashed });
    }
  },

  preview: ({ file, model }) => preview(file, model),
};

async function infer(pixels, { input_size: side, crop, resize }, wanted) {
  // A model that cuts images takes those that were cut already as one row: see export/build/box_graph.py.
  const shape = crop > 0 || resize === "crop" ? [1, 1, side * side, 3] : [1, side, side, 3];
  const outputs = await session.run({ image: new ort.Tensor("uint8", pixels, shape) }, wanted);
  return Object.fromEntries(wanted.map((name) => [name, { data: outputs[name].data, dims: outputs[name].dims }]));
}

self.onmessage = async ({ data: { task, ...rest } }) => {
  try {
    self.postMessage({ result: await tasks[task](rest) });
  } catch (error) {
    self.postMessage({ problem: error.message ?? String(error), hasCrashed: error.hasCrashed });
  }
};
