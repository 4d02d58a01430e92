// The same results as rows: to sort by any column, and to save for a spreadsheet.

import { percent, textElement } from "./cards.js";

const FAMILIARITY = new Map([[true, "familiar"], [false, "unlike the training images"], [null, ""]]);

let order = { column: 0, down: false };

// A column: its title, the value to sort by and to save, and how it is shown.
function columnsOf(classes, measured) {
  const plain = (value) => value ?? "";
  return [
    { title: "File", value: (row) => row.file.name, show: plain },
    { title: "Decision", value: (row) => row.answer?.label ?? "", show: plain },
    ...classes.map((name) => ({
      title: name, number: true, value: (row) => row.answer?.probabilities[name] ?? null,
      show: (share) => (share === null ? "" : percent(share)),
    })),
    ...(measured ? [
      { title: "Distance", number: true, value: (row) => row.answer?.ood ?? null, show: (x) => (x === null ? "" : x.toFixed(2)) },
      { title: "Familiar", value: (row) => FAMILIARITY.get(row.answer?.in_distribution ?? null), show: plain },
    ] : []),
  ];
}

function compare(one, other) {
  if (one === null || other === null) return (one === null) - (other === null); // what is missing comes last
  return typeof one === "number" ? one - other : one.localeCompare(other, undefined, { numeric: true });
}

function sorted(rows, column) {
  const known = rows.filter((row) => column.value(row) !== null);
  const missing = rows.filter((row) => column.value(row) === null);
  known.sort((one, other) => compare(column.value(one), column.value(other)) * (order.down ? -1 : 1));
  return [...known, ...missing];
}

export function showTable(place, rows, classes) {
  const measured = rows.some((row) => row.answer && row.answer.ood !== null);
  const columns = columnsOf(classes, measured);
  if (order.column >= columns.length) order = { column: 0, down: false };
  const again = () => showTable(place, rows, classes);
  const head = document.createElement("tr");
  head.append(...columns.map((column, number) => headCell(column, number, again)));
  const body = sorted(rows, columns[order.column]).map((row) => {
    const line = document.createElement("tr");
    line.classList.toggle("foreign", row.answer?.in_distribution === false);
    line.append(...(row.answer ? columns.map((column) => cellOf(column, row)) : [cellOf(columns[0], row), reasonOf(row, columns)]));
    return line;
  });
  const table = document.createElement("table");
  table.createTHead().append(head);
  table.createTBody().append(...body);
  const focused = place.contains(document.activeElement) ? order.column : -1;
  place.replaceChildren(table);
  if (focused >= 0) head.children[focused].firstElementChild.focus();
}

const cellOf = (column, row) => textElement("td", column.show(column.value(row)), column.number ? "number" : "");

function reasonOf(row, columns) {
  const cell = textElement("td", row.problem ? `no answer: ${row.problem}` : "waiting…", row.problem ? "problem" : "");
  cell.colSpan = columns.length - 1;
  return cell;
}

function headCell(column, number, again) {
  const cell = textElement("th", "", column.number ? "number" : "");
  cell.scope = "col";
  const chosen = order.column === number;
  cell.setAttribute("aria-sort", chosen ? (order.down ? "descending" : "ascending") : "none");
  const button = textElement("button", column.title);
  button.type = "button";
  const arrow = textElement("span", chosen ? (order.down ? " ▼" : " ▲") : "");
  arrow.setAttribute("aria-hidden", "true"); // aria-sort says it
  button.append(arrow);
  button.addEventListener("click", () => {
    // Probabilities are read from the top: their first click sorts downwards.
    order = chosen ? { column: number, down: !order.down } : { column: number, down: Boolean(column.number) };
    again();
  });
  cell.append(button);
  return cell;
}

// A name that begins like a formula would be run by a spreadsheet.
function field(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function asCsv(rows, classes) {
  const columns = columnsOf(classes, rows.some((row) => row.answer && row.answer.ood !== null));
  const lines = [
    [...columns.map((column) => column.title), "Problem"],
    ...rows.map((row) => [...columns.map((column) => column.value(row)), row.problem ?? ""]),
  ];
  return lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
}
