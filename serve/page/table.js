// The results as a table: sortable by any column, and saved as CSV for a spreadsheet.

import { percent, textElement } from "./cards.js";

const OUT_OF_DISTRIBUTION = { true: "no sign", false: "yes", "": "" };

let order = { column: 0, descending: false };

// A column: its title in the table, its name in the CSV file (as `xserve predict -o` writes it), the value to sort by and to
// save, and how the table shows it.
function columnsOf(classes, hasOod) {
  const plain = (value) => value ?? "";
  return [
    { title: "File", csv: "path", value: (row) => row.file.name, show: plain },
    { title: "Decision", csv: "label", value: (row) => row.prediction?.label ?? "", show: plain },
    ...classes.map((name) => ({
      title: name, csv: `p_${name}`, number: true, value: (row) => row.prediction?.probabilities[name] ?? null,
      show: (share) => (share === null ? "" : percent(share)),
    })),
    ...(hasOod ? [
      { title: "OOD score", csv: "ood", number: true, value: (row) => row.prediction?.ood ?? null, show: (x) => (x === null ? "" : x.toFixed(2)) },
      {
        title: "Out of distribution", csv: "in_distribution", value: (row) => String(row.prediction?.in_distribution ?? ""),
        show: (value) => OUT_OF_DISTRIBUTION[value],
      },
    ] : []),
  ];
}

const hasOod = (rows) => rows.some((row) => row.prediction && row.prediction.ood !== null);

function compare(one, other) {
  return typeof one === "number" ? one - other : one.localeCompare(other, undefined, { numeric: true });
}

function sorted(rows, column) {
  const present = rows.filter((row) => column.value(row) !== null);
  const missing = rows.filter((row) => column.value(row) === null);
  present.sort((one, other) => compare(column.value(one), column.value(other)) * (order.descending ? -1 : 1));
  return [...present, ...missing];
}

export function showTable(place, rows, classes) {
  const columns = columnsOf(classes, hasOod(rows));
  if (order.column >= columns.length) order = { column: 0, descending: false };
  const redraw = () => showTable(place, rows, classes);
  const head = document.createElement("tr");
  head.append(...columns.map((column, number) => headCell(column, number, redraw)));
  const body = sorted(rows, columns[order.column]).map((row) => {
    const line = document.createElement("tr");
    line.classList.toggle("ood", row.prediction?.in_distribution === false);
    line.append(...(row.prediction ? columns.map((column) => cellOf(column, row)) : [cellOf(columns[0], row), reasonOf(row, columns)]));
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
  const cell = textElement("td", row.problem ? `no prediction: ${row.problem}` : "waiting…", row.problem ? "problem" : "");
  cell.colSpan = columns.length - 1;
  return cell;
}

function headCell(column, number, redraw) {
  const cell = textElement("th", "", column.number ? "number" : "");
  cell.scope = "col";
  const chosen = order.column === number;
  cell.setAttribute("aria-sort", chosen ? (order.descending ? "descending" : "ascending") : "none");
  const button = textElement("button", column.title);
  button.type = "button";
  const arrow = textElement("span", chosen ? (order.descending ? " ▼" : " ▲") : "");
  arrow.setAttribute("aria-hidden", "true"); // screen readers use aria-sort
  button.append(arrow);
  button.addEventListener("click", () => {
    // High probabilities are the interesting ones: the first click on a number sorts in descending order.
    order = { column: number, descending: chosen ? !order.descending : Boolean(column.number) };
    redraw();
  });
  cell.append(button);
  return cell;
}

// A spreadsheet would run a name that begins like a formula.
function field(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function asCsv(rows, classes) {
  const columns = columnsOf(classes, true);
  const lines = [
    [...columns.map((column) => column.csv), "error"],
    ...rows.map((row) => [...columns.map((column) => column.value(row)), row.problem ?? ""]),
  ];
  return lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
}
