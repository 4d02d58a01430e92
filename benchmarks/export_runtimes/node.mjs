// The job in the folder named, with onnxruntime-web of the node_modules named; prints the answers as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { answers } from "./answers.mjs";

const [modules, folder] = process.argv.slice(2);
const ort = createRequire(`${modules}/x.js`)("onnxruntime-web");
console.log(JSON.stringify(await answers(ort, async (name) => new Uint8Array(readFileSync(`${folder}/${name}`)))));
