// Figures with a panel for each method: R as heat maps, and forgetting as bars on a common scale.

const DEEP = 0.655; // above this shade, white text is more readable than black, in the colors of clbench/report/formats/palette.py

function panels(width, count, least, gap = 24) {
  const across = Math.max(1, Math.min(count, Math.floor((width + gap) / (least + gap))));
  const each = Math.min((width + gap) / across - gap, 1.7 * least);
  return { each, place: (i, height) => [(i % across) * (each + gap), Math.floor(i / across) * height],
    rows: Math.ceil(count / across) };
}

function heading(parent, method, x, y, width) {
  const within = group(parent, method);
  marker(within, method, x + 5, y - 4, 4);
  shape(within, "text", { x: x + 15, y, class: "label strong" }, fit(method.label, width - 16, "600 12px"));
}

function drawHeat(svg, width, figure, methods) {
  const tables = figure.dataset.tables.split(" ").map(readTable);
  const found = methods.flatMap((method) => {
    const table = tables[Number(method.button.dataset.matrix)];
    return table ? [{ method, table }] : [];
  });
  const tasks = Math.max(1, ...found.map(({ table }) => table.columns.length));
  const { each, place, rows } = panels(width, found.length, tasks > 6 ? 230 : 190);
  const cell = (each - 22) / tasks;
  const tall = Math.min(cell, 26);
  const height = tall * (tasks + 1) + 66;
  const marks = [];
  const shade = shades(found.map(({ table }) => table), figure.dataset.better);
  scaleBar(svg, shade);
  found.forEach(({ method, table }, i) => {
    const [left, top] = place(i, height);
    marks.push(...heatPanel(svg, method, table, shade, { left, top: top + 44, each, cell, tall }));
  });
  return { height: rows * height + 30, marks };
}

// Return the shade of a value, from 0 to 1, and the labels of both ends of the scale. The scale ends at 100 % for percent,
// else at the largest value. It starts at 0, or at the smallest value if that is negative.
function shades(tables, better = "up") {
  const unit = tables[0]?.columns[0].unit ?? "percent";
  const all = tables.flatMap(({ rows }) => [...rows.values()].flat().map(({ value }) => value));
  const [least, most] = [Math.min(0, ...all), unit === "percent" ? 1 : Math.max(...all)];
  const [worst, best] = better === "up" ? [least, most] : [most, least];
  const text = (v) => `${tickText(v, unit)}${UNITS[unit] ?? ""}`;
  return { of: (v) => (v - worst) / (best - worst || 1), worst: text(worst), best: text(best), unit };
}

function scaleBar(svg, shade) {
  const back = shape(svg, "g", { class: "frame" });
  const left = shade.unit === "percent" ? 28 : textWidth(shade.worst) + 8;
  shape(back, "text", { x: 0, y: 12 }, shade.worst);
  for (let i = 0; i < 20; i += 1) heatCell(back, left + 6 * i, 2, 6.2, 12, i / 19);
  shape(back, "text", { x: left + 128, y: 12 }, shade.best);
}

function heatCell(parent, x, y, width, height, value) {
  shape(parent, "rect", { x, y, width, height, class: "cold" });
  return shape(parent, "rect", { x, y, width, height, class: "hot", "fill-opacity": value });
}

function heatPanel(svg, method, table, shade, { left, top, each, cell, tall }) {
  const within = group(svg, method);
  const marks = [];
  const tasks = table.columns.length;
  const x = left + 22;
  const y = (row) => top + row * tall + (row ? 4 : 0);
  heading(svg, method, left, top - 10, each);
  for (const [row, cells] of table.rows) {
    if (tasks <= 10 || row % 5 === 0) {
      shape(within, "text", { x: x - 6, y: y(row) + tall / 2 + 4, "text-anchor": "end", class: "small" }, String(row));
    }
    cells.forEach(({ value, text, seeds }, j) => {
      const at = x + j * cell;
      heatCell(within, at + 0.5, y(row) + 0.5, cell - 1, tall - 1, shade.of(value));
      const texts = shade.unit === "percent" ? [Number(text).toFixed(cell >= 38 ? 1 : 0)]
        : [text, String(Number(value.toPrecision(2)))];
      const shown = texts.find((each) => textWidth(each, "10px") <= cell - 6);
      if (shown) {
        shape(within, "text", { x: at + cell / 2, y: y(row) + tall / 2 + 4, "text-anchor": "middle",
          class: `small ${shade.of(value) > DEEP ? "on-hot" : "on-cold"}` }, shown);
      }
      marks.push({
        x0: at, y0: y(row), x1: at + cell, y1: y(row) + tall, row: method.row, step: marks.length, title: method.label,
        lines: [`${table.columns[j].title}, ${row ? `after task ${row}` : "before training"}: ${text}${UNITS[shade.unit] ?? ""}`, seeds,
          classesOf(table.columns[j])],
      });
    });
  }
  for (let j = 0; j < tasks; j += 1) {
    if (tasks > 10 && (j + 1) % 5) continue;
    shape(within, "text", { x: x + (j + 0.5) * cell, y: y(tasks + 1) + 13, "text-anchor": "middle", class: "small" },
      taskText(table.columns[j], j, cell - 4, "11px"));
  }
  let stairs = `M${x} ${y(1)}`; // tasks that have been trained are below the line
  for (let j = 0; j < tasks; j += 1) stairs += `H${(x + (j + 1) * cell).toFixed(2)}V${y(Math.min(j + 2, tasks + 1)).toFixed(2)}`;
  shape(within, "path", { d: stairs, class: "stairs" });
  return marks;
}

function drawBars(svg, width, figure, methods) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const found = methods.map((method) => ({ method, cells: rows.get(method.row) }))
    .filter(({ cells }) => cells.every((cell) => cell.value !== null));
  const ends = found.flatMap(({ cells }) => cells.flatMap((c) => [c.low, c.high]));
  const [low, high] = padded(Math.min(0, ...ends), Math.max(0, ...ends), columns[0].unit, 0.05);
  const yText = (v) => tickText(v, columns[0].unit);
  const margin = leftOf(linearTicks(low, high, 5), yText);
  const { each, place, rows: down } = panels(width, found.length, width < 520 ? 128 : 190);
  const height = 158;
  const marks = [];
  found.forEach(({ method, cells }, i) => {
    const [left, top] = place(i, height);
    heading(svg, method, left, top + 12, each);
    const box = { left: left + margin, right: left + each, top: top + 26, bottom: top + 122 };
    const y = linear(low, high, box.bottom, box.top);
    const slot = (box.right - box.left) / cells.length;
    const x = (j) => box.left + (j - 0.5) * slot;
    frame(svg, box, { x, y, xTicks: columns.map((_, j) => j + 1), xText: (j) => taskText(columns[j - 1], j - 1, slot), yTicks: y.ticks(5),
      yText });
    const within = group(svg, method);
    cells.forEach((cell, j) => {
      const [above, below] = [y(Math.max(cell.value, 0)), y(Math.min(cell.value, 0))];
      const side = Math.min(slot * 0.7, 26) / 2;
      shape(within, "rect", { x: x(j + 1) - side, width: 2 * side, y: above, height: Math.max(below - above, 0.5),
        class: method.reference ? "bar hollow" : "bar" });
      const whisker = [y(cell.high), y(cell.low)];
      shape(within, "line", { x1: x(j + 1), x2: x(j + 1), y1: whisker[0], y2: whisker[1], class: "whisker" });
      marks.push({
        x0: x(j + 1) - slot / 2, x1: x(j + 1) + slot / 2, y0: Math.min(above, whisker[0]) - 2, y1: Math.max(below, whisker[1]) + 2,
        row: method.row, step: j, title: method.label, lines: [`${columns[j].title}: ${withUnit(cell, columns[j].unit)}`,
          classesOf(columns[j])],
      });
    });
    shape(svg, "line", { x1: box.left, x2: box.right, y1: y(0), y2: y(0), class: "zero" });
  });
  return { height: down * height, marks };
}
