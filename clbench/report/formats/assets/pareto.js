// Figure of the primary metric against a cost that the reader chooses, with the Pareto front.

function drawPareto(svg, width, figure, methods) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const choice = figure.querySelector("input:checked");
  const [column, final] = [choice.value, figure.dataset.final].map(Number);
  const { unit: measure, name } = columns[final];
  const found = methods.map((method) => ({ method, cost: rows.get(method.row)[column], gain: rows.get(method.row)[final] }))
    .filter(({ gain }) => gain.value !== null);
  listMissing(figure, found, columns[column].name);
  const points = found.filter(({ cost }) => cost.value > 0); // a logarithmic axis has no 0
  if (!points.length) return { height: 0, marks: [] };
  const height = width >= 520 ? 360 : 320;
  const box = { right: width - 14, top: 30, bottom: height - 46 };
  const clip = clipTo(figure.dataset);
  const limits = (end) => points.map(({ gain }) => clip(gain[end]));
  const y = linear(...padded(Math.min(...limits("low")), Math.max(...limits("high")), measure), box.bottom, box.top);
  const yText = (v) => tickText(v, measure);
  const yTicks = y.ticks(6).filter((tick) => tick === clip(tick));
  box.left = leftOf(yTicks, yText);
  const costs = points.map(({ cost }) => cost.value);
  const ratio = Math.max((Math.max(...costs) / Math.min(...costs)) ** 0.1, 1.3);
  const x = logarithmic(Math.min(...costs) / ratio, Math.max(...costs) * ratio, box.left, box.right);
  const unit = columns[column].unit;
  frame(svg, box, { x, y, xTicks: x.ticks(), xText: (v) => tickText(v, unit), xTitle: `${columns[column].name}${unit === "seconds" ? " (s)" : ""}, log`,
    yTicks, yText, yTitle: figure.dataset.axis });
  const best = choice.dataset.front.split(" ").filter(Boolean).map(Number);
  const at = points.map(({ cost, gain }) => [x(cost.value), y(gain.value)]);
  steps(svg, best.map((row) => points.findIndex(({ method }) => method.row === row)).filter((i) => i >= 0).map((i) => at[i]), box);
  const marks = points.map(({ method, cost, gain }, i) => {
    const within = group(svg, method);
    const [px, py] = at[i];
    const span = [limits("high")[i], limits("low")[i]].map(y);
    shape(within, "line", { x1: px, x2: px, y1: span[0], y2: span[1], class: "whisker" });
    marker(within, method, px, py, best.includes(method.row) ? 6 : 4.5);
    return { ...around(px, py, 7), row: method.row, step: i, title: method.label,
      lines: [`${name}: ${withUnit(gain, measure)}`, `${columns[column].name}: ${withUnit(cost, unit)}`] };
  });
  nameAll(svg, points, at, best, box, width >= 520);
  return { height, marks };
}

// Write below the figure which methods have no place on the axis of a cost, and why.
function listMissing(figure, found, cost) {
  const sentences = [["they have none", 0], ["it was not recorded", null]].map(([reason, value]) => {
    const names = found.filter((point) => point.cost.value === value).map(({ method }) => method.label);
    return names.length ? `Not on the axis of ${cost}, because ${reason}: ${names.join(", ")}.` : "";
  });
  const place = figure.querySelector(".missing") ?? make("p", { class: "key missing" });
  place.textContent = sentences.filter(Boolean).join(" ");
  place.hidden = !place.textContent;
  figure.append(place);
}

function steps(svg, points, box) {
  if (!points.length) return;
  const sorted = [...points].sort((a, b) => a[0] - b[0]);
  let path = `M${sorted[0][0].toFixed(1)} ${sorted[0][1].toFixed(1)}`;
  for (const [x, y] of sorted.slice(1)) path += `H${x.toFixed(1)}V${y.toFixed(1)}`;
  shape(svg, "path", { d: `${path}H${box.right}`, class: "front" });
}

// Write a name next to each point that has room for it. The legend and the tooltips name the other points.
function nameAll(svg, points, at, best, box, roomy) {
  const taken = at.map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
  points.forEach(({ method }, i) => {
    const text = fit(method.label, roomy ? 200 : 110);
    const [x, y] = at[i];
    const wide = textWidth(text);
    for (const [dx, dy, anchor] of spots(best.includes(method.row))) {
      const left = x + dx - { start: 0, middle: wide / 2, end: wide }[anchor];
      const spot = [left, y + dy - 11, left + wide, y + dy + 3];
      const clear = taken.every((other, j) => j === i || spot[2] < other[0] || spot[0] > other[2] || spot[3] < other[1] || spot[1] > other[3]);
      if (!clear || spot[0] < box.left || spot[2] > box.right + 12 || spot[1] < box.top - 14 || spot[3] > box.bottom) continue;
      taken.push(spot);
      shape(group(svg, method), "text", { x: x + dx, y: y + dy, "text-anchor": anchor, class: "label" }, text);
      break;
    }
  });
}

// Return possible places of a name, best first. For a point on the front, the places along its steps come last.
function spots(onFront) {
  const level = [[11, 4, "start"], [-11, 4, "end"]];
  const above = [[-9, -8, "end"], [9, -8, "start"]];
  const below = [[9, 17, "start"], [-9, 17, "end"]];
  return onFront ? [...above, level[1], ...below, level[0]] : [...level, ...above, ...below];
}
