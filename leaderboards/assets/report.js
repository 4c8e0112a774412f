"use strict";
// Sorting: the head of a column is a button; numbers stand in data-v, empty where there is none.
for (const head of document.querySelectorAll("th[aria-sort]")) {
  head.querySelector("button").addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], index = head.cellIndex;
    const numeric = head.dataset.kind === "number";
    const down = head.getAttribute("aria-sort") === (numeric ? "none" : "ascending") ||
      (numeric && head.getAttribute("aria-sort") === "ascending");
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => numeric ? row.cells[index].dataset.v : row.cells[index].textContent.trim().toLowerCase();
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // without a figure: always last
      const order = numeric ? a - b : a.localeCompare(b);
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  });
}
// Filtering: every word must occur in a row.
const words = document.getElementById("words"), verdict = document.getElementById("verdict");
const shown = document.getElementById("shown"), rows = Array.from(document.querySelectorAll("tr[data-text]"));
function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let number = 0;
  for (const row of rows) {
    const fits = wanted.every((word) => row.dataset.text.includes(word)) &&
      (!verdict.value || row.dataset.verdict === verdict.value);
    row.hidden = !fits;
    number += fits;
  }
  shown.textContent = `${number} of ${rows.length} rows`;
}
words.addEventListener("input", filter);
verdict.addEventListener("change", filter);
filter();
// Provenance: every figure is a button that opens the same dialog; with a pointer, every cell of its row does.
const facts = JSON.parse(document.getElementById("facts").textContent), dialog = document.getElementById("provenance");
const body = dialog.querySelector("div");
function list(title, entries) {
  const heading = document.createElement("h3"), parts = document.createElement("dl");
  heading.textContent = title;
  for (const [name, value] of entries) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    parts.append(term, text);
  }
  return [heading, parts];
}
document.addEventListener("click", (event) => {
  if (event.target.closest("dialog") || String(getSelection())) return; // selecting text opens nothing
  const source = event.target.closest("button[data-row]") ?? event.target.closest("td")?.closest("tr[data-row]");
  if (!source) return;
  const own = facts.rows[source.dataset.row];
  dialog.querySelector("h2").textContent = own.title;
  body.replaceChildren(...own.parts.flatMap(([title, entries]) =>
    list(title, typeof entries === "number" ? facts.shared[entries] : entries)));
  dialog.showModal();
  dialog.scrollTop = 0;
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
