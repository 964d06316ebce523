// Figure of a metric over steps: a panel for each method, a line for each task. The reader chooses all steps or one boundary.

const [BEFORE, BEHIND] = [0.25, 0.75]; // shares of a window that are before and after the boundary

function drawSteps(svg, width, figure, methods) {
  const { curves, colors, unit } = JSON.parse(figure.dataset.curves);
  const clip = clipTo(figure.dataset);
  const zoom = Number(figure.querySelector("input:checked").value);
  const found = methods.flatMap((method) => curves.filter(({ row }) => row === method.row).map((curve) => ({ method, curve })));
  const { each, place, rows } = panels(width, found.length, width < 520 ? 260 : 420);
  const height = 272;
  const marks = [];
  found.forEach(({ method, curve }, i) => {
    const [left, top] = place(i, height);
    heading(svg, method, left, top + 12, each);
    marks.push(...stepPanel(svg, method, curve, colors, zoom, unit, clip, { left: left + 36, right: left + each - 16, top: top + 28, bottom: top + 208 }));
  });
  return { height: taskKeys(svg, curves, colors, rows * height + 12, width), marks };
}

function stepPanel(svg, method, curve, colors, zoom, unit, clip, box) {
  const [low, high] = zoom ? windowOf(curve.ends, zoom) : [0, curve.ends.at(-1)];
  const within = ([x]) => x >= low && x <= high;
  const lines = curve.tasks.map((points) => points.filter(within));
  const old = curve.old.map((points) => points.filter(within)).filter((points) => points.length);
  const values = lines.flat().map(([, value]) => value);
  const x = linear(low, high, box.left, box.right);
  const y = unit === "percent" ? linear(Math.max(0, Math.min(0.98, ...values) - 0.02), 1.01, box.bottom, box.top)
    : linear(...padded(Math.min(...values), Math.max(...values), unit).map(clip), box.bottom, box.top);
  frame(svg, box, { x, y, xTicks: x.ticks(6), xText: String, xTitle: "optimizer steps", yTicks: y.ticks(5).filter((tick) => tick === clip(tick)),
    yText: (v) => tickText(v, unit) });
  const g = group(svg, method);
  for (const end of curve.ends.slice(0, -1)) {
    if (end >= low && end <= high) shape(g, "line", { x1: x(end), x2: x(end), y1: box.top, y2: box.bottom, class: "front" });
  }
  const path = (points) => `M${points.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}`;
  lines.forEach((points, task) => {
    if (points.length > 1) shape(g, "path", { d: path(points), class: `line thin ${colors[task % colors.length]} v${Math.floor(task / colors.length)}` });
  });
  for (const points of old) shape(g, "path", { d: path(points), class: "line old" });
  return old.flat().map(([at, value], step) => ({ ...around(x(at), y(value), 4), row: method.row, step, title: method.label,
    lines: [`old tasks: ${unit === "percent" ? (100 * value).toFixed(1) : Number(value.toPrecision(3))}${UNITS[unit] ?? ""}`, `${at} steps, ${said(curve.ends, at)}`] }));
}

// Return the first and last step of a window around a boundary. It extends up to 200 steps into the next task.
function windowOf(ends, zoom) {
  const at = ends[zoom - 1];
  const reach = Math.max(4, Math.min(200, ends[zoom] - at)); // a task may have no steps
  return [Math.max(0, at - reach * BEFORE / BEHIND), at + reach];
}

function said(ends, at) {
  const task = ends.findIndex((end) => at <= end);
  return `${at - (task ? ends[task - 1] : 0)} of task ${task + 1}`;
}

// Draw the legend of the lines in as many lines as needed, and return the height at which it ends.
function taskKeys(svg, curves, colors, top, width) {
  const tasks = Math.max(...curves.map((curve) => curve.tasks.length));
  const names = [["mean over old tasks", "line old"],
    ...Array.from({ length: tasks }, (_, t) => [`task ${t + 1}`, `line ${colors[t % colors.length]} v${Math.floor(t / colors.length)}`])];
  let [x, y] = [0, top];
  for (const [name, look] of names) {
    const wide = textWidth(name) + 44;
    if (x && x + wide > width) [x, y] = [0, y + 20];
    shape(svg, "path", { d: `M${x} ${y - 4}H${x + 22}`, class: look });
    shape(svg, "text", { x: x + 28, y, class: "small" }, name);
    x += wide;
  }
  return y + 10;
}
