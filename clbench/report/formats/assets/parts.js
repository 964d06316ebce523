// Figure of the error decomposition: a bar for each method with the lost points by cause; negative parts are left of 0.

const PARTS = { // color of each part, as in clbench/report/figures/errors.py
  "wrong in its task": "c5", "bias of the head": "c4", "confusion of tasks": "c1", "wrong task guessed": "c3",
  "another task's output": "c2", "right only unguided": "gray",
};

function drawParts(svg, width, figure, methods) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const parts = columns.flatMap(({ title, name }, j) => (title in PARTS ? [{ title, name, j }] : []));
  const probe = columns.findIndex(({ title }) => title === "probe");
  const found = methods.map((method) => ({ method, cells: rows.get(method.row) }))
    .filter(({ cells }) => parts.some(({ j }) => cells[j].value !== null));
  const sum = (cells, sign) => parts.reduce((total, { j }) => total + Math.max(0, sign * (cells[j].value ?? 0)), 0);
  const low = -Math.max(0, ...found.map(({ cells }) => sum(cells, -1)));
  const high = Math.max(0.01, ...found.map(({ cells }) => Math.max(sum(cells, 1), probed(cells, probe) ?? 0)));
  const drawn = parts.filter(({ j }) => found.some(({ cells }) => cells[j].value)); // the legend shows only these
  const key = partsKey(svg, width, drawn, found.some(({ cells }) => probed(cells, probe) !== null));
  const plot = shape(svg, "g", { transform: `translate(0 ${key})` });
  const { x, lanes, height } = laneFrame(plot, width, found.map(({ method }) => method), low, high * 1.02,
    { xText: (v) => tickText(v, "points"), xTitle: "points lost" });
  const marks = [];
  found.forEach(({ method, cells }, i) => {
    const { within, y } = lanes[i];
    const ends = { 1: 0, "-1": 0 };
    for (const { title, name, j } of parts) {
      const { value } = cells[j];
      if (!value) continue;
      const from = ends[Math.sign(value)];
      ends[Math.sign(value)] += value;
      const [a, b] = [x(Math.min(from, from + value)), x(Math.max(from, from + value))];
      const colored = shape(within, "g", { class: PARTS[title] });
      shape(colored, "rect", { x: a, width: Math.max(b - a, 0.5), y: y - 9, height: 18, class: method.reference ? "part pale" : "part" });
      marks.push({ x0: a, x1: b, y0: y - 9 + key, y1: y + 9 + key, row: method.row, step: j, title: method.label,
        lines: [`${name}: ${withUnit(cells[j], "points")}`, `of ${cells[columns.findIndex((c) => c.title === "points lost")].text} points lost`] });
    }
    const lost = probed(cells, probe);
    if (lost !== null) {
      shape(within, "path", { d: MARKERS.D(4), transform: `translate(${x(lost).toFixed(2)} ${y})`, class: "probe" });
      marks.push({ ...around(x(lost), y + key, 5), row: method.row, step: columns.length, title: method.label,
        lines: [`a linear probe on its features gets ${withUnit(cells[probe], "percent")}`] });
    }
  });
  shape(plot, "line", { x1: x(0), x2: x(0), y1: 8, y2: 12 + found.length * (width >= 520 ? 32 : 46), class: "zero" });
  return { height: height + key, marks };
}

function probed(cells, probe) {
  return probe < 0 || cells[probe].value === null ? null : 1 - cells[probe].value;
}

// Draw the legend of the colors in as many lines as needed, and return its height.
function partsKey(svg, width, parts, probe) {
  let [at, line] = [0, 14];
  for (const { title, name } of [...parts, ...(probe ? [{ title: "", name: "linear probe" }] : [])]) {
    const needs = textWidth(name) + 34;
    if (at && at + needs > width) [at, line] = [0, line + 20];
    const within = shape(svg, "g", { class: PARTS[title] ?? "" });
    if (title in PARTS) shape(within, "rect", { x: at, y: line - 10, width: 12, height: 12, class: "part" });
    else shape(within, "path", { d: MARKERS.D(4), transform: `translate(${at + 6} ${line - 4})`, class: "probe" });
    shape(within, "text", { x: at + 18, y: line }, name);
    at += needs;
  }
  return line + 8;
}
