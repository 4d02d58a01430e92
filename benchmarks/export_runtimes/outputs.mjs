// Runs one model on the inputs of a job and returns their probabilities, in Node and in browsers.
export async function outputs(ort, load) {
  const job = JSON.parse(new TextDecoder().decode(await load("job.json")));
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "fatal";
  const session = await ort.InferenceSession.create(await load("model.onnx"), { executionProviders: ["wasm"] });
  const found = [];
  for (const [number, shape] of job.shapes.entries()) {
    const bytes = await load(`${number}.bin`);
    const view = job.kind === "uint8" ? bytes : new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const { probabilities } = await session.run({ image: new ort.Tensor(job.kind, view, shape) });
    found.push(Array.from(probabilities.data));
  }
  return found;
}
