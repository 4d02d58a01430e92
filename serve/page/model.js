// Which model answers, how it decides, and how it was tested.

import { percent, textElement } from "./cards.js";

const $ = (id) => document.getElementById(id);

export const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const either = (names) => new Intl.ListFormat("en-GB", { type: "disjunction" }).format(names);

// `whereabouts`: which machine computes.
export function showModel(facts, whereabouts) {
  $("classes").textContent = either(facts.classes);
  $("classes").classList.remove("failed");
  const limit = facts.limits ? `, up to ${Math.floor(facts.limits.max_body_bytes / 2 ** 20)} MiB each` : "";
  $("formats").textContent = either(facts.formats) + limit;
  // DICOM files often have no ending at all, so nothing may be left out of the list then.
  $("files").accept = facts.formats.includes("DICOM") ? "" : "image/*,.tif,.tiff";
  const lines = [
    ["Model", facts.model],
    ["Run", facts.run],
    ["Backbone", `${facts.backbone}, ${facts.input_size} × ${facts.input_size}`],
    ["Test accuracy", accuracyOf(facts)],
    ["Data audit", auditOf(facts.audit)],
    ["Runs on", whereabouts],
    ["Decision", facts.positive === null ? "the most probable class" : `${facts.positive} from ${percent(facts.threshold)}, the mark on its bar`],
  ];
  $("facts").replaceChildren();
  for (const [name, value] of lines) {
    const line = document.createElement("div");
    line.append(textElement("dt", name), textElement("dd", value));
    $("facts").append(line);
  }
  showAudit(facts.audit ?? {});
  $("heat-tool").hidden = !facts.heatmaps;
  $("which").hidden = facts.names.length < 2;
  $("names").replaceChildren(...facts.names.map((name) => new Option(name, name, false, name === facts.name)));
}

function accuracyOf(facts) {
  if (facts.test_accuracy === null) return "not measured";
  const parts = [percent(facts.test_accuracy)];
  if (facts.test_images) parts.push(`of ${facts.test_images} images`);
  const ends = facts.test_accuracy_interval;
  if (ends) parts.push(`(95 % interval ${(ends[0] * 100).toFixed(1)} to ${(ends[1] * 100).toFixed(1)} %)`);
  return parts.join(" ");
}

function auditOf(audit) {
  if (!audit) return "not known";
  if (!audit.audited) return "not done";
  const warnings = audit.warnings?.length ? `, with ${counted(audit.warnings.length, "warning")}` : "";
  return (audit.passed ? "passed" : "not passed") + warnings;
}

function showAudit({ passed, failures = [], warnings = [] }) {
  $("audit").hidden = passed !== false;
  $("audit").textContent = `The data this model was trained on did not pass its audit: ${failures.join("; ")}`;
  $("warnings").hidden = warnings.length === 0;
  $("warnings").firstElementChild.textContent = `${counted(warnings.length, "warning")} about the data this model was trained on`;
  $("warnings").lastElementChild.replaceChildren(...warnings.map((text) => textElement("li", text)));
}
