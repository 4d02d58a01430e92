// The description of the model: how it decides, and how it was tested.

import { percent, textElement } from "./cards.js";

const $ = (id) => document.getElementById(id);

const CERTIFICATES = {
  signed: "signed, and matches the model file",
  matches: "matches the model file",
  none: "none beside the model file",
  differs: "does not match the model file: predictions may differ from what was checked",
};

export const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const either = (names) => new Intl.ListFormat("en-GB", { type: "disjunction" }).format(names);

// `device`: where the model runs, as a text.
export function showModel(model, device) {
  $("classes").textContent = either(model.classes);
  $("classes").classList.remove("failed");
  const limit = model.limits ? `, up to ${Math.floor(model.limits.max_body_bytes / 2 ** 20)} MiB each` : "";
  $("formats").textContent = either(model.formats) + limit;
  // DICOM files often have no suffix, so the file dialog must then offer all files.
  $("files").accept = model.formats.includes("DICOM") ? "" : "image/*,.tif,.tiff";
  const lines = [
    ["Model", model.model],
    ["Run", model.run],
    ["Backbone", `${model.backbone}, ${model.input_size} × ${model.input_size}${boxText(model)}`],
    ["Test accuracy", accuracyOf(model)],
    ...(model.test_sensitivity ? [["At the threshold", ratesOf(model)]] : []),
    ["Elsewhere", model.elsewhere?.replace("elsewhere: ", "") ?? "not measured: images of another hospital may be classified worse"],
    ["Data audit", auditOf(model.audit)],
    ...(Object.keys(model.ood_kinds).length ? [["Out of distribution", oodKindsOf(model)]] : []),
    ["Certificate", CERTIFICATES[model.certificate] ?? "unknown"],
    ["Runs on", device],
    ["Decision", model.positive === null ? "the most probable class" : `${model.positive} at ${percent(model.threshold)} or more (the mark on its bar)`],
  ];
  $("description").replaceChildren();
  for (const [name, value] of lines) {
    const line = document.createElement("div");
    line.append(textElement("dt", name), textElement("dd", value));
    $("description").append(line);
    // Beside the accuracy, so that nobody reads one without the other.
    if (name === "Test accuracy") showCaution(line, model.audit ?? {});
  }
  $("which").hidden = model.names.length < 2;
  $("names").replaceChildren(...model.names.map((name) => new Option(name === model.default ? `${name} (default)` : name, name, false, name === model.name)));
}

// Which kinds of images the out-of-distribution score finds, as measured when the model was written.
function oodKindsOf({ ood_kinds }) {
  const found = Object.entries(ood_kinds).map(([kind, { images, above }]) => `${kind} ${Math.round(above * images)} of ${images}`);
  return `found at the export: ${found.join(", ")}. Images of another hospital are often not found.`;
}

function boxText({ crop, resize }) {
  const cut = crop > 0 ? `, ${Number((100 * crop).toPrecision(4))} % cut off at each side` : "";
  return cut + (resize === "crop" ? ", centred square" : "");
}

function accuracyOf(model) {
  if (model.test_accuracy === null) return "not measured";
  const parts = [percent(model.test_accuracy)];
  if (model.test_images) parts.push(`of ${model.test_images} images`);
  parts.push(intervalOf(model.test_accuracy_interval));
  if (model.test_sensitivity) parts.push(`at the threshold; by the most probable class ${percent(model.test_accuracy_most_probable)}`);
  return parts.filter(Boolean).join(" ");
}

function ratesOf({ positive, test_sensitivity, test_specificity }) {
  const rate = (name, { value, interval }) => `${name} ${value === null ? "not measured" : percent(value)} ${intervalOf(interval)}`.trim();
  return `${rate(`sensitivity of ${positive}`, test_sensitivity)}, ${rate("specificity", test_specificity)}`;
}

function intervalOf(ends) {
  return ends ? `(95 % confidence interval ${(ends[0] * 100).toFixed(1)} to ${(ends[1] * 100).toFixed(1)} %)` : "";
}

function auditOf(audit) {
  if (!audit) return "unknown";
  if (!audit.audited) return "not done";
  const warnings = audit.warnings?.length ? `; ${counted(audit.warnings.length, "warning")}` : "";
  const { leakage, shortcuts } = verdictsOf(audit);
  return `leakage ${leakage}; shortcuts ${shortcuts}${warnings}`;
}

// Models of earlier versions have no verdicts.
function verdictsOf({ passed, verdicts }) {
  return verdicts ?? { leakage: passed ? "none found" : "found", shortcuts: "unknown" };
}

function showCaution(line, audit) {
  const { audited, failures = [], warnings = [] } = audit;
  const { leakage, shortcuts } = verdictsOf(audit);
  const alarms = [
    ...(audited && leakage === "found" ? [`The audit found leakage in the training data of this model: ${failures.join("; ")}.`] : []),
    ...(audited && shortcuts === "found" ? ["The audit found shortcuts in the training data of this model: the class can be predicted without the anatomy, so its accuracy may not hold elsewhere."] : []),
  ];
  if (!alarms.length && !warnings.length) return;
  const caution = $("caution").content.firstElementChild.cloneNode(true);
  const [alarm, list] = caution.children;
  alarm.hidden = alarms.length === 0;
  alarm.textContent = alarms.join(" ");
  list.hidden = warnings.length === 0;
  list.open = shortcuts !== "none found"; // then a shortcut is or may be among the warnings
  list.firstElementChild.textContent = `${counted(warnings.length, "warning")} about the training data of this model`;
  list.lastElementChild.append(...warnings.map((text) => textElement("li", text)));
  line.classList.add("cautioned");
  line.append(caution);
}
