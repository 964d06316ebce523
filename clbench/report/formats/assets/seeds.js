// Figure with a row for each method: a dot for each seed, and a bar for the mean with its interval.

function drawSeeds(svg, width, figure, methods) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const found = methods.map((method) => ({ method, cells: rows.get(method.row) }))
    .map(({ method, cells }) => ({ method, seeds: cells.slice(0, -1), mean: cells[cells.length - 1] }))
    .filter(({ mean }) => mean.value !== null);
  const ends = found.flatMap(({ seeds, mean }) => [mean.low, mean.high,
    ...seeds.flatMap(({ value }) => (value === null ? [] : [value]))]);
  const { unit } = columns[0];
  const clip = clipTo(figure.dataset);
  const [low, high] = padded(clip(Math.min(...ends)), clip(Math.max(...ends)), unit, 0.04).map(clip);
  const { x, lanes, height } = laneFrame(svg, width, found.map(({ method }) => method), low, high,
    { xText: (v) => tickText(v, unit), xTitle: figure.dataset.axis });
  const marks = [];
  found.forEach(({ method, seeds, mean }, i) => {
    const { within, y } = lanes[i];
    const [a, b] = [mean.low, mean.high].map((end) => x(clip(end)));
    marks.push(bar(within, method, y, a, x(mean.value), b, columns.length, `mean: ${withUnit(mean, unit)}`));
    const taken = [];
    seeds.forEach((cell, j) => {
      if (cell.value === null) return;
      const [at, high] = beeswarm(x(cell.value), y, taken);
      marker(within, method, at, high, 3.5);
      marks.push({ ...around(at, high, 4), row: method.row, step: j, title: method.label,
        lines: [`${columns[j].title}: ${withUnit(cell, unit)}`] });
    });
  });
  return { height, marks };
}

// Draw a row for each method, best on top: its average rank, with half the critical difference on each side.
function drawRanks(svg, width, figure, methods) {
  const { rows } = readTable(figure.dataset.tables);
  const average = rows.get(rows.size - 1);
  const half = Number(figure.dataset.critical) / 2;
  const ranked = methods.map((method) => ({ method, rank: average[method.row] })).sort((p, q) => p.rank.value - q.rank.value);
  const ends = ranked.flatMap(({ rank }) => [rank.value - half, rank.value + half]);
  const { x, lanes, height } = laneFrame(svg, width, ranked.map(({ method }) => method), ...padded(Math.min(...ends), Math.max(...ends), "number"),
    { xText: String, xTitle: "average rank", least: 1, most: average.length });
  const marks = ranked.map(({ method, rank }, i) => {
    const { within, y } = lanes[i];
    const mark = bar(within, method, y, x(rank.value - half), x(rank.value), x(rank.value + half), 0, `average rank: ${rank.text}`);
    marker(within, method, x(rank.value), y, 4.5);
    return mark;
  });
  return { height, marks };
}

// Draw rows of methods on a common scale, with a grid and names. Return the scale, the group and middle of each row, and the height.
function laneFrame(svg, width, methods, low, high, { xText, xTitle, least = -Infinity, most = Infinity }) {
  const beside = width >= 520;
  const left = beside ? Math.max(40, ...methods.map(({ label }) => textWidth(fit(label, width * 0.36)) + 30)) : 8;
  const each = beside ? 32 : 46;
  const box = { left, right: width - 14, top: 8, bottom: 12 + methods.length * each };
  const x = linear(low, high, box.left, box.right);
  const back = shape(svg, "g", { class: "frame" });
  const ticks = x.ticks(beside ? 8 : 5).filter((tick) => tick >= least && tick <= most);
  for (const tick of ticks) shape(back, "line", { x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom, class: "grid" });
  frame(svg, box, { x, y: x, xTicks: ticks, xText, yTicks: [], xTitle });
  const lanes = methods.map((method, i) => {
    const y = box.top + i * each + (beside ? each / 2 : each * 0.72);
    const within = group(svg, method);
    if (beside) shape(within, "text", { x: left - 16, y: y + 4, "text-anchor": "end", class: "label" }, fit(method.label, width * 0.36));
    else shape(within, "text", { x: left, y: y - 16, class: "label" }, fit(method.label, width - 20));
    return { within, y };
  });
  return { x, lanes, height: box.bottom + 46 };
}

// Draw a mean with its interval.
function bar(within, method, y, low, mean, high, step, line) {
  shape(within, "line", { x1: low, x2: high, y1: y, y2: y, class: "interval" });
  shape(within, "line", { x1: mean, x2: mean, y1: y - 9, y2: y + 9, class: "mean" });
  return { x0: mean - 2, x1: mean + 2, y0: y - 9, y1: y + 9, row: method.row, step, title: method.label, lines: [line] };
}

// Return the place of a dot, moved up or down if it would cover another dot.
function beeswarm(x, middle, taken) {
  const clear = (y) => taken.every(([a, b]) => Math.hypot(a - x, b - y) >= 6);
  const y = [0, -6, 6, -9, 9, -3, 3].map((dy) => middle + dy).find(clear) ?? middle;
  taken.push([x, y]);
  return [x, y];
}
