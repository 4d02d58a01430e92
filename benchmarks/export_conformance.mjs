// Runs one model on the inputs named in the JSON on stdin, with onnxruntime-web's WebAssembly, and prints the answers.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const modules = resolve(process.env.XFEAT_NODE_MODULES ?? "node_modules");
const ort = createRequire(`${modules}/x.js`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

const job = JSON.parse(readFileSync(0, "utf8"));
const session = await ort.InferenceSession.create(readFileSync(job.model), { executionProviders: ["wasm"] });
const answers = [];
for (const [number, shape] of job.shapes.entries()) {
  const bytes = readFileSync(`${job.folder}/${number}.bin`);
  const view = job.kind === "uint8" ? new Uint8Array(bytes) : new Float32Array(new Uint8Array(bytes).buffer);
  const { probabilities } = await session.run({ image: new ort.Tensor(job.kind, view, shape) });
  answers.push(Array.from(probabilities.data));
}
console.log(JSON.stringify(answers));
