"use strict";
// What was chosen for an image: row to { choice, group, reason }. An image can stand in several findings.
const { paths, classes } = JSON.parse(document.getElementById("images").textContent);
const chosen = new Map();

function cell(text) {
  return /[",;\r\n\t]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const lines = ["path,action,value,reason"];
  for (const [row, { choice, group, reason }] of [...chosen].sort(([a], [b]) => a - b)) {
    const add = (action, value) => lines.push([paths[row], action, value, reason].map(cell).join(","));
    if (choice === "exclude") add("exclude", "");
    else if (choice !== "") add("relabel", classes[choice]);
    if (group !== "" && choice !== "exclude") add("group", group);
  }
  return lines;
}

function change(row, changes, reason) {
  const now = { choice: "", group: "", reason, ...chosen.get(row), ...changes };
  if (now.choice === "" && now.group === "") chosen.delete(row);
  else chosen.set(row, now);
  for (const box of document.querySelectorAll(`.correct[data-row="${row}"]`)) {
    box.querySelector("select").value = now.choice;
    box.querySelector("input").value = now.group;
    box.classList.toggle("chosen", chosen.has(row));
  }
  const count = table().length - 1;
  document.getElementById("corrections").hidden = count === 0;
  document.getElementById("count").textContent = `${count} correction${count === 1 ? "" : "s"}`;
}

for (const box of document.querySelectorAll(".correct")) {
  const row = Number(box.dataset.row);
  const select = document.createElement("select");
  const group = document.createElement("input");
  select.setAttribute("aria-label", `correction of ${paths[row]}`);
  select.append(new Option("keep", ""), new Option("exclude", "exclude"));
  classes.forEach((name, code) => select.append(new Option(`is: ${name}`, code)));
  group.placeholder = "group";
  group.setAttribute("aria-label", `group of ${paths[row]}`);
  select.addEventListener("change", () => change(row, { choice: select.value }, box.dataset.reason));
  group.addEventListener("input", () => change(row, { group: group.value.trim() }, box.dataset.reason));
  box.append(select, group);
}

for (const button of document.querySelectorAll(".exclude-all")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    for (const row of JSON.parse(button.dataset.rows)) change(row, { choice: "exclude" }, button.dataset.reason);
  });
}

document.getElementById("save").addEventListener("click", () => {
  // The mark at the start tells spreadsheets that it is UTF-8.
  const file = new Blob(["\ufeff", ...table().map((line) => `${line}\r\n`)], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
