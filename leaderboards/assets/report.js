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
// Filtering: every word must occur in a row. A row that stands in several tables counts once; tables without a
// row that fits are hidden, and a section without any says so.
const words = document.getElementById("words"), verdict = document.getElementById("verdict");
const shown = document.getElementById("shown"), rows = Array.from(document.querySelectorAll("tr[data-text]"));
function count(fitting) {
  const [left, all] = [fitting, rows].map((some) => new Set(some.flatMap((row) => row.dataset.row ?? [])).size);
  const [held, claims] = [fitting, rows].map((some) => some.filter((row) => row.closest("#claims")).length);
  return `${left} of ${all} rows${claims ? `, ${held} of ${claims} claims` : ""}`;
}
function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    row.hidden = !(wanted.every((word) => row.dataset.text.includes(word)) &&
      (!verdict.value || row.dataset.verdict === verdict.value));
  }
  const fitting = rows.filter((row) => !row.hidden), tables = new Set(fitting.map((row) => row.closest("table")));
  const sections = new Map(); // whether anything is left of a section
  for (const table of new Set(rows.map((row) => row.closest("table")))) {
    const section = table.closest("section"), part = table.closest(".part") ?? table.closest(".scroll");
    part.hidden = !tables.has(table);
    for (const heading of part.querySelectorAll("h3[id]")) {
      const link = document.querySelector(`.toc a[href="#${CSS.escape(heading.id)}"]`);
      if (link) link.parentElement.hidden = part.hidden;
    }
    sections.set(section, sections.get(section) || tables.has(table));
    const folded = table.closest("details");
    if (folded && verdict.value && tables.has(table)) folded.open = true;
  }
  for (const [section, some] of sections) {
    section.querySelector(".none")?.remove();
    if (some) continue;
    const note = document.createElement("p");
    note.className = "notes none";
    note.textContent = "No row fits the filter.";
    section.append(note);
  }
  shown.textContent = count(fitting);
}
if (words) {
  words.addEventListener("input", filter);
  verdict.addEventListener("change", filter);
  shown.textContent = count(rows);
}
// Provenance: every figure is a button that opens the same dialog; with a pointer, every cell of its row does.
const dialog = document.getElementById("provenance");
let facts; // read at the first question
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
  facts ??= JSON.parse(document.getElementById("facts").textContent);
  const own = facts.rows[source.dataset.row];
  dialog.querySelector("h2").textContent = own.title;
  body.replaceChildren(...own.parts.flatMap(([title, entries]) =>
    list(title, typeof entries === "number" ? facts.shared[entries] : entries)));
  dialog.showModal();
  dialog.scrollTop = 0;
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
// A link into something folded unfolds it.
addEventListener("hashchange", () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.localName === "details") part.open = true;
  requestAnimationFrame(() => requestAnimationFrame(() => target?.scrollIntoView?.())); // parts above are laid out late
});
// The contents say where the reader is.
const links = new Map(Array.from(document.querySelectorAll(".toc > ul > li > a"), (link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const part of document.querySelectorAll("main > section")) seen.observe(part);
// Pictures below the first screen come once the page is there, one after the other.
function fetched(image) {
  if (image.dataset.src) image.src = image.dataset.src;
  image.removeAttribute("data-src");
}
const waiting = "img[data-src]";
addEventListener("load", () => {
  const next = () => {
    const image = document.querySelector(waiting);
    if (!image) return;
    fetched(image);
    setTimeout(next);
  };
  next();
});
addEventListener("beforeprint", () => document.querySelectorAll(waiting).forEach(fetched));
// A plot becomes part of the page when it is looked at, so that its marks can say their numbers.
function inline(image) {
  const text = new TextDecoder().decode(Uint8Array.from(atob((image.dataset.src ?? image.src).split(",")[1]), (c) => c.charCodeAt(0)));
  const drawing = document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true);
  if (drawing.localName !== "svg") return;
  const prefix = `${image.dataset.plot}-${document.querySelectorAll(".plot").length}-`, box = document.createElement("div");
  for (const part of drawing.querySelectorAll("*")) {
    for (const { name, value } of Array.from(part.attributes)) {
      if (name === "id" && value.startsWith("says-")) {
        const bytes = value.slice(5).split("_")[0].match(/../g).map((two) => parseInt(two, 16));
        part.dataset.says = new TextDecoder().decode(Uint8Array.from(bytes));
        part.removeAttribute("id");
      } else if (name === "id") part.id = prefix + value;
      else if (name.endsWith("href") && value[0] === "#") part.setAttribute(name, `#${prefix}${value.slice(1)}`);
      else if (/url\(#/.test(value)) part.setAttribute(name, value.replace(/url\(#/g, (start) => start + prefix));
    }
  }
  for (const name of ["width", "height"]) drawing.removeAttribute(name);
  drawing.setAttribute("aria-hidden", "true");
  box.className = "plot";
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", image.alt);
  box.append(drawing);
  image.replaceWith(box);
}
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) {
    near.unobserve(target);
    inline(target);
  }
});
for (const image of document.querySelectorAll("img[data-plot]")) near.observe(image);
// Marks of plots say their numbers below the pointer.
const says = document.createElement("div");
says.id = "says";
says.hidden = true;
says.setAttribute("aria-hidden", "true");
document.body.append(says);
// The mark at a place or close by, since lines are thin; of a mark with several points, the one that is met.
const around = [[0, 0], [3, 0], [-3, 0], [0, 3], [0, -3], [6, 0], [-6, 0], [0, 6], [0, -6]];
function pointed({ clientX, clientY, target }) {
  if (!target.closest?.(".plot")) return "";
  for (const [right, down] of around) {
    const met = document.elementFromPoint(clientX + right, clientY + down), mark = met?.closest("[data-says]");
    if (!mark) continue;
    const [text, points] = mark.dataset.says.split("\x1e"), told = points?.split("\x1f") ?? [];
    const drawn = Array.from(mark.querySelectorAll(mark.querySelector("use") ? "use" : "path"));
    const one = drawn.length === told.length ? told[drawn.indexOf(met)] : undefined;
    return [text, ...(one === undefined ? told.slice(0, 12) : [one])].filter(Boolean).join("\n");
  }
  return "";
}
function tell(event) {
  const text = pointed(event);
  says.hidden = !text;
  if (!text) return;
  says.textContent = text;
  says.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - says.offsetWidth - 8))}px`;
  says.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - says.offsetHeight - 8))}px`;
}
document.addEventListener("pointermove", tell);
document.addEventListener("pointerdown", tell); // a finger does not hover
addEventListener("scroll", () => { says.hidden = true; }, { passive: true });
// Two rows set against each other; their figures are read when the reader comes near.
const form = document.getElementById("pair");
function compare() {
  const groups = JSON.parse(document.getElementById("pairs").textContent), out = document.getElementById("compared");
  const { group, first, second } = form.elements;
  const make = (name, ...children) => {
    const made = document.createElement(name);
    made.append(...children);
    return made;
  };
  const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const table = (title, heads, lines, numbers = true) => {
    const made = make("table", make("caption", title), make("thead", make("tr", ...heads.map((name) => make("th", name)))),
      make("tbody", ...lines.map((line) => make("tr", ...line.map((cell, i) => make(i ? "td" : "th", ...[cell].flat()))))));
    made.className = "small";
    for (const cell of made.tHead.rows[0].cells) cell.scope = "col";
    for (const cell of made.querySelectorAll("tbody th")) cell.scope = "row";
    if (numbers) for (const cell of made.querySelectorAll("tr > :not(:first-child)")) cell.className = "r";
    return made;
  };
  const image = (source, text) => Object.assign(make("img"), { src: source, alt: text, className: "thumb" });
  const swatch = (colour) => {
    const made = make("i");
    made.className = "swatch";
    made.style.background = colour;
    return made;
  };
  // The interval on a scale around zero; it says nothing that does not stand beside it.
  const drawing = (difference, low, high) => {
    const most = Math.max(...[difference, low, high].map(Math.abs), 1e-9), at = (x) => 50 + 48 * x / most;
    const line = (kind, from, to, top, end) => `<line class="${kind}" x1="${at(from)}" x2="${at(to)}" y1="${top}" y2="${end}"/>`;
    const made = make("span");
    made.innerHTML = '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">' +
      line("zero", 0, 0, 0, 12) + line("range", low, high, 6, 6) + line("mean", difference, difference, 2, 10) + "</svg>";
    return made.firstChild;
  };
  const draw = () => {
    const own = groups[group.value], a = Number(first.value), b = Number(second.value);
    if (a === b) return out.replaceChildren(make("p", "Pick two different rows."));
    const turned = a > b, pair = own.pairs[turned ? `${b}-${a}` : `${a}-${b}`];
    let [difference, low, high] = pair.figures;
    if (turned) [difference, low, high] = [-difference, -high, -low];
    const over = pair.single ? "pictures alone: one side has one seed" : "pictures and seeds";
    const sure = low > 0 ? "The first leads." : high < 0 ? "The second leads." : "Which of them leads is open.";
    const text = (value, digits = 1) => value === null ? "absent" : value.toFixed(digits);
    const classes = own.classes.map((name, k) => [k, own.iou[a][k], own.iou[b][k]])
      .map(([k, x, y]) => [k, x, y, x === null || y === null ? null : x - y])
      .sort((x, y) => (y[3] ?? -999) - (x[3] ?? -999))
      .map(([k, x, y, gap]) => [[...own.colours[k] ? [swatch(own.colours[k])] : [], own.classes[k]],
        text(x), text(y), gap === null ? "–" : signed(gap, 1)]);
    const differing = pair.differing.map(([name, x, y]) => turned ? [name, y, x] : [name, x, y]);
    const pictures = (title, list) => {
      const seen = list.some(([id]) => own.pictures[id]), lines = list.map(([id, ...both]) => {
        const [x, y] = turned ? [both[1], both[0]] : both, shown = own.pictures[id];
        const cell = (place, value) => {
          const map = shown?.[place + 2], side = place === a ? "first" : "second";
          return map ? [image(map, `what the ${side} predicts`), text(value)] : text(value);
        };
        const truth = seen ? [shown ? [image(shown[1], "truth")] : ""] : [];
        return [shown ? [image(shown[0], ""), id] : id, ...truth, cell(a, x), cell(b, y)];
      });
      return lines.length ? [table(title, ["Picture", ...seen ? ["Truth"] : [], "First", "Second"], lines)] : [];
    };
    const words = make("p", make("strong", sure), ` First minus second: ${signed(difference)} points of mIoU, ` +
      `95 % interval ${signed(low)} to ${signed(high)} over ${over}. `, drawing(difference, low, high));
    const left = make("div", table("IoU by class (%)", ["Class", "First", "Second", "Difference"], classes));
    if (differing.length) left.append(table("What else differs", ["What", "First", "Second"], differing, false));
    else left.append(make("p", "They differ in nothing else that is recorded."));
    const right = make("div",
      ...pictures("Where the first is ahead most: mean IoU of the picture (%)", turned ? pair.second : pair.first),
      ...pictures("Where the second is ahead most", turned ? pair.first : pair.second));
    const parts = make("div", left, right);
    parts.className = "pair";
    const note = Object.keys(own.pictures).length ? "IoU is the mean over seeds; maps are those of the first seed. White is void." : "";
    out.replaceChildren(words, parts, ...note ? [Object.assign(make("p", note), { className: "notes" })] : []);
  };
  const fill = () => {
    const own = groups[group.value];
    for (const [field, place] of [[first, own.start[0]], [second, own.start[1]]]) {
      field.replaceChildren(...own.rows.map((name, i) =>
        Object.assign(make("option", `${name} (${own.means[i].toFixed(2)})`), { value: i })));
      field.value = place;
    }
    draw();
  };
  group.addEventListener("change", fill);
  first.addEventListener("change", draw);
  second.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  fill();
}
if (form) new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  compare();
}, { rootMargin: "600px" }).observe(form);
