// Runs the job in a folder with onnxruntime-web of a node_modules folder (arguments 2 and 1); prints JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { outputs } from "./outputs.mjs";

const [modules, folder] = process.argv.slice(2);
const ort = createRequire(`${modules}/x.js`)("onnxruntime-web");
console.log(JSON.stringify(await outputs(ort, async (name) => new Uint8Array(readFileSync(`${folder}/${name}`)))));
