// A row for each method: a dot for each seed, a bar for the mean with its interval.

function drawSeeds(svg, width, figure, methods) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const found = methods.map((method) => ({ method, cells: rows.get(method.row) }))
    .map(({ method, cells }) => ({ method, seeds: cells.slice(0, -1), mean: cells[cells.length - 1] }))
    .filter(({ mean }) => mean.value !== null);
  const beside = width >= 520;
  const left = beside ? Math.max(40, ...found.map(({ method }) => textWidth(fit(method.label, width * 0.36)) + 30)) : 8;
  const each = beside ? 32 : 46;
  const box = { left, right: width - 14, top: 8, bottom: 12 + found.length * each };
  const ends = found.flatMap(({ seeds, mean }) => [mean.low, mean.high,
    ...seeds.flatMap(({ value }) => (value === null ? [] : [value]))]);
  const [low, high] = padded(Math.max(0, Math.min(...ends)), Math.min(1, Math.max(...ends)), 0.04);
  const x = linear(Math.max(low, 0), Math.min(high, 1.002), box.left, box.right);
  const back = shape(svg, "g", { class: "frame" });
  const ticks = x.ticks(beside ? 8 : 5);
  for (const tick of ticks) shape(back, "line", { x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom, class: "grid" });
  frame(svg, box, { x, y: x, xTicks: ticks, xText: (v) => tickText(v, "percent"), yTicks: [], xTitle: "ACC (%)" });
  const marks = [];
  found.forEach(({ method, seeds, mean }, i) => {
    const y = box.top + i * each + (beside ? each / 2 : each * 0.72);
    const within = group(svg, method);
    if (beside) shape(within, "text", { x: left - 16, y: y + 4, "text-anchor": "end", class: "label" }, fit(method.label, width * 0.36));
    else shape(within, "text", { x: left, y: y - 16, class: "label" }, fit(method.label, width - 20));
    const [a, b] = [mean.low, mean.high].map((end) => x(Math.max(x.low, Math.min(1, end))));
    shape(within, "line", { x1: a, x2: b, y1: y, y2: y, class: "interval" });
    shape(within, "line", { x1: x(mean.value), x2: x(mean.value), y1: y - 9, y2: y + 9, class: "mean" });
    marks.push({ x0: x(mean.value) - 2, x1: x(mean.value) + 2, y0: y - 9, y1: y + 9, row: method.row, step: columns.length,
      title: method.label, lines: [`mean: ${withUnit(mean, "percent")}`] });
    const taken = [];
    seeds.forEach((cell, j) => {
      if (cell.value === null) return;
      const [at, high] = beeswarm(x(cell.value), y, taken);
      marker(within, method, at, high, 3.5);
      marks.push({ ...around(at, high, 4), row: method.row, step: j, title: method.label,
        lines: [`${columns[j].title}: ${withUnit(cell, "percent")}`] });
    });
  });
  return { height: box.bottom + 46, marks };
}

// Where a dot stands that would cover another: above or below it.
function beeswarm(x, middle, taken) {
  const clear = (y) => taken.every(([a, b]) => Math.hypot(a - x, b - y) >= 6);
  const y = [0, -6, 6, -9, 9, -3, 3].map((dy) => middle + dy).find(clear) ?? middle;
  taken.push([x, y]);
  return [x, y];
}
