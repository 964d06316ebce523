// Create elements, read tables as numbers, and draw what all figures share. Text from a report is set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const UNITS = { percent: " %", points: " points", nats: " nats", seconds: " s" };

function make(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// Add a button that copies a command, if the browser lets a page copy.
function copyable(command) {
  if (!navigator.clipboard) return;
  const button = make("button", { type: "button", class: "copy", "aria-live": "polite" }, "Copy");
  button.addEventListener("click", () => navigator.clipboard.writeText(command.querySelector("code").textContent)
    .then(() => { button.textContent = "Copied"; }, () => getSelection().selectAllChildren(command.querySelector("pre"))));
  command.append(button);
}

function shape(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, typeof value === "number" ? Number(value.toFixed(2)) : value);
  }
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// Return the number in a cell and the ends of its interval, from its attribute data-v if it has one, else from its text.
function numbersOf(td, unit) {
  if ("v" in td.dataset) {
    const [value, low = value, high = value] = td.dataset.v.split(" ").map(Number);
    return { value, low, high };
  }
  const [value, half] = unit === "text" ? [NaN] : td.textContent.replaceAll(",", "").split("±").map(Number.parseFloat);
  if (Number.isNaN(value)) return { value: null, low: NaN, high: NaN };
  const scale = unit === "percent" || unit === "points" ? 0.01 : 1;
  return { value: scale * value, low: scale * (value - (half || 0)), high: scale * (value + (half || 0)) };
}

// Read a table of the page: its title, its columns, and the cells of each row by the row's number.
function readTable(id) {
  const table = document.getElementById(id);
  const columns = [...table.tHead.rows[0].cells].slice(1).map((th) => ({ ...th.dataset, name: th.dataset.name ?? th.dataset.title, hint: th.dataset.name ? "" : th.title }));
  const seeds = table.dataset.seeds?.split(" ");
  const rows = new Map();
  for (const tr of table.querySelectorAll("tr[data-row]")) {
    rows.set(Number(tr.dataset.row), [...tr.cells].slice(1).map((td, j) => ({
      text: td.textContent,
      ...numbersOf(td, columns[j].unit),
      seeds: td.dataset.s?.split(" ").map((value, i) => `seed ${seeds[i]}: ${value}`).join(", "),
    })));
  }
  return { columns, rows, title: table.caption.textContent };
}

// Return a line with the classes of a column's task, if they have names.
function classesOf(column) {
  return column.hint && `classes: ${column.hint}`;
}

// Return the label of a column's task on an axis: its name if that fits, else its number.
function taskText(column, index, width, font) {
  const [, name] = column.title.split(": ");
  return name && textWidth(name, font) <= width ? name : String(index + 1);
}

function withUnit(cell, unit) {
  return cell.text + (UNITS[unit] ?? "");
}

// Return the methods of a section in the order of its legend.
function readMethods(legend) {
  return [...legend.querySelectorAll("button")].map((button) => ({
    button,
    label: button.textContent,
    row: Number(button.dataset.row),
    color: button.dataset.color,
    marker: button.dataset.marker,
    variant: button.dataset.variant,
    reference: "reference" in button.dataset,
    get shown() { return button.getAttribute("aria-pressed") === "true"; },
  }));
}

// Replace the middle of a text that is longer than `most` characters by an ellipsis.
function shorten(text, most) {
  if (text.length <= most) return text;
  const half = Math.floor((most - 1) / 2);
  return `${text.slice(0, most - 1 - half)}…${text.slice(text.length - half)}`;
}

const measure = document.createElement("canvas").getContext("2d");

function textWidth(text, font = "12px") {
  measure.font = `${font} system-ui, -apple-system, "Segoe UI", Roboto, sans-serif`;
  return measure.measureText(text).width;
}

function fit(text, width, font) {
  let most = text.length;
  while (most > 3 && textWidth(shorten(text, most), font) > width) most -= 1;
  return shorten(text, most);
}

const MARKERS = {
  o: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  s: (r) => polygon(r, [[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]]),
  D: (r) => polygon(r, [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]]),
  "^": (r) => polygon(r, [[0, -1.2], [1.15, 0.9], [-1.15, 0.9]]),
  v: (r) => polygon(r, [[0, 1.2], [1.15, -0.9], [-1.15, -0.9]]),
  P: (r) => polygon(r, [[-0.4, -1.1], [0.4, -1.1], [0.4, -0.4], [1.1, -0.4], [1.1, 0.4], [0.4, 0.4],
    [0.4, 1.1], [-0.4, 1.1], [-0.4, 0.4], [-1.1, 0.4], [-1.1, -0.4], [-0.4, -0.4]]),
  X: (r) => polygon(r, [[-1.1, -0.6], [-0.6, -1.1], [0, -0.5], [0.6, -1.1], [1.1, -0.6], [0.5, 0],
    [1.1, 0.6], [0.6, 1.1], [0, 0.5], [-0.6, 1.1], [-1.1, 0.6], [-0.5, 0]]),
};

Object.assign(MARKERS, {
  "<": (r) => polygon(r, [[-1.2, 0], [0.9, -1.15], [0.9, 1.15]]),
  ">": (r) => polygon(r, [[1.2, 0], [-0.9, -1.15], [-0.9, 1.15]]),
  p: (r) => polygon(r, star(5, 1.1, 1.1 * Math.cos(Math.PI / 5))),
  "*": (r) => polygon(r, star(5, 1.4, 0.55)),
});

// Return the corners of a star. It is a regular polygon if the inner corners lie on the sides.
function star(points, outer, inner) {
  return Array.from({ length: 2 * points }, (_, i) => {
    const [at, reach] = [(i * Math.PI) / points - Math.PI / 2, i % 2 ? inner : outer];
    return [reach * Math.cos(at), reach * Math.sin(at)];
  });
}

function polygon(r, points) {
  return `M${points.map(([x, y]) => `${(r * x).toFixed(2)} ${(r * y).toFixed(2)}`).join("L")}z`;
}

function marker(parent, method, x, y, r = 4) {
  const hollow = method.reference ? " hollow" : "";
  return shape(parent, "path", {
    d: MARKERS[method.marker](r), transform: `translate(${x.toFixed(2)} ${y.toFixed(2)})`,
    class: `marker${hollow}`,
  });
}

// Return the group of a method's shapes, in its color, so that the page can highlight them together.
function group(parent, method) {
  return shape(parent, "g", { class: `of ${method.color}`, "data-row": method.row });
}
