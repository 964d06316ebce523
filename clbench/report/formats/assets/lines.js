// Figure of curves over tasks with the bands of their intervals. Methods with equal curves alternate as dashes of one line.

function drawLines(svg, width, figure, methods) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const curves = methods.map((method) => ({ method, cells: rows.get(method.row) }))
    .filter(({ cells }) => cells.every((cell) => cell.value !== null));
  const unit = columns[0].unit;
  const clip = clipTo(figure.dataset);
  const wide = width >= 520;
  const height = wide ? Math.max(340, 15 * curves.length + 60) : 280; // room for the labels at the ends
  const labels = curves.map(({ method }) => fit(method.label, width * 0.28));
  const margin = wide ? Math.max(0, ...labels.map((text) => textWidth(text))) + 26 : 10;
  const box = { right: width - margin, top: 30, bottom: height - 46 };
  const y = heights(curves, unit, box, clip);
  const yText = (v) => tickText(v, unit);
  box.left = leftOf(y.ticks(6), yText);
  const x = columns.length > 1 ? linear(1, columns.length, box.left + 6, box.right - 6)
    : () => (box.left + box.right) / 2;
  frame(svg, box, {
    x, y, xTicks: columns.map((_, i) => i + 1), xText: (i) => String(i - 1 + Number(figure.dataset.first ?? 1)), xTitle: "tasks seen",
    yTicks: y.ticks(6), yText, yTitle: figure.dataset.axis,
  });
  const marks = [];
  const alike = new Map();
  for (const curve of curves) {
    const key = curve.cells.map((cell) => cell.value).join();
    alike.set(key, [...alike.get(key) ?? [], curve]);
  }
  for (const { method, cells } of curves) band(group(svg, method), cells, x, y, clip, curves.length > 6 ? "band faint" : "band");
  for (const same of alike.values()) {
    same.forEach(({ method, cells }, k) => {
      const within = group(svg, method);
      const line = shape(within, "path", {
        class: `line v${method.variant}`,
        d: `M${cells.map((cell, i) => `${x(i + 1).toFixed(1)} ${y(cell.value).toFixed(1)}`).join("L")}`,
      });
      if (same.length > 1) {
        line.setAttribute("class", "line");
        line.setAttribute("stroke-dasharray", `7 ${7 * (same.length - 1)}`);
        line.setAttribute("stroke-dashoffset", -7 * k);
      }
      cells.forEach((cell, i) => {
        if (i % same.length === k % same.length || cells.length < same.length) marker(within, method, x(i + 1), y(cell.value));
        marks.push({
          ...around(x(i + 1), y(cell.value), 5), row: method.row, step: i, title: method.label,
          lines: [`${columns[i].title}: ${withUnit(cell, unit)}`, classesOf(columns[i])],
        });
      });
    });
  }
  if (wide) endLabels(svg, curves, labels, box, y);
  return { height, marks };
}

function heights(curves, unit, box, clip) {
  const all = curves.flatMap(({ cells }) => cells);
  const [low, high] = [clip(Math.min(...all.map((cell) => cell.low))), clip(Math.max(...all.map((cell) => cell.high)))];
  if (unit !== "count") return linear(...padded(low, high, unit).map(clip), box.bottom, box.top);
  if (low > 0 && high / low > 4) return logarithmic(low / 1.15, high * 1.15, box.bottom, box.top);
  return linear(0, high * 1.08 || 1, box.bottom, box.top);
}

function band(parent, cells, x, y, clip, look) {
  if (cells.every((cell) => cell.low === cell.high)) return;
  const edge = (end) => cells.map((cell, i) => `${x(i + 1).toFixed(1)} ${y(Math.max(y.low, clip(cell[end]))).toFixed(1)}`);
  shape(parent, "path", { class: look, d: `M${[...edge("high"), ...edge("low").reverse()].join("L")}z` });
}

function endLabels(svg, curves, labels, box, y) {
  const ends = curves.map(({ cells }) => y(cells[cells.length - 1].value));
  spread(ends, 15, box.top - 12, box.bottom + 12).forEach((at, i) => {
    const within = group(svg, curves[i].method);
    shape(within, "path", { class: "leader", d: `M${box.right} ${ends[i].toFixed(1)}L${box.right + 12} ${at.toFixed(1)}` });
    shape(within, "text", { x: box.right + 16, y: at + 4, class: "label" }, labels[i]);
  });
}

function around(x, y, r) {
  return { x0: x - r, y0: y - r, x1: x + r, y1: y + r };
}
