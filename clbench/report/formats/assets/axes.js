// Scales, ticks and frames.

const PREFIXES = {
  count: [[1e9, " G"], [1e6, " M"], [1e3, " k"]],
  flops: [[1e18, " EFLOP"], [1e15, " PFLOP"], [1e12, " TFLOP"], [1e9, " GFLOP"], [1e6, " MFLOP"], [1e3, " kFLOP"], [1, " FLOP"]],
  bytes: [[1e12, " TB"], [1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [1, " B"]],
};

function tickText(value, unit) {
  if (unit === "percent" || unit === "points") return String(Number((100 * value).toPrecision(4)));
  for (const [factor, name] of PREFIXES[unit] ?? []) {
    if (value >= factor) return `${Number((value / factor).toPrecision(3))}${name}`;
  }
  return String(Number(value.toPrecision(4)));
}

function linear(low, high, from, to) {
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  return Object.assign(scale, { low, high, ticks: (count) => linearTicks(low, high, count) });
}

function logarithmic(low, high, from, to) {
  const scale = (value) => from + (Math.log(value / low) / Math.log(high / low)) * (to - from);
  return Object.assign(scale, { low, high, ticks: () => logTicks(low, high) });
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  let ticks = [];
  for (const steps of [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += 1) {
      ticks.push(...steps.map((s) => s * 10 ** e).filter((v) => v >= low && v <= high));
    }
    if (ticks.length >= 3) break;
  }
  return ticks;
}

// Return a range with padding around the values, which is not empty even if all values are equal.
function padded(low, high, unit, share = 0.06) {
  const least = unit === "percent" || unit === "points" ? 0.005 : 0.002 * (Math.max(-low, high) || 1);
  const pad = Math.max((high - low) * share, least);
  return [low - pad, high + pad];
}

// Return a function that moves a value, such as the end of an interval, to the nearest possible value of a figure's metric.
function clipTo({ low = -Infinity, high = Infinity }) {
  return (value) => Math.max(Number(low), Math.min(Number(high), value));
}

// Return the left end of a plot such that the labels of its vertical axis fit in front of it.
function leftOf(ticks, text) {
  return Math.max(28, ...ticks.map((tick) => textWidth(text(tick)) + 11));
}

// Draw grid, ticks and axis titles of a plot; `box` has left, right, top and bottom in pixels.
function frame(svg, box, { x, y, xTicks, yTicks, xText, yText, xTitle, yTitle }) {
  const back = shape(svg, "g", { class: "frame" });
  for (const tick of yTicks) {
    shape(back, "line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: "grid" });
    shape(back, "text", { x: box.left - 8, y: y(tick) + 4, "text-anchor": "end" }, yText(tick));
  }
  const whole = svg.ownerSVGElement ?? svg; // a figure with a legend above its plot passes a group
  let free = -Infinity;
  for (const tick of xTicks) {
    shape(back, "line", { x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4, class: "tick" });
    const text = xText(tick);
    const half = textWidth(text) / 2;
    const middle = Math.min(x(tick), whole.getAttribute("width") - half); // keeps the last label inside the figure
    if (middle - half < free) continue;
    shape(back, "text", { x: middle, y: box.bottom + 18, "text-anchor": "middle" }, text);
    free = middle + half + 6;
  }
  shape(back, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" });
  if (yTitle) shape(back, "text", { x: 0, y: 13, class: "title" }, yTitle);
  if (xTitle) {
    shape(back, "text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle", class: "title" },
      xTitle);
  }
}

// Return centers near the wanted ones, in the same order and at least `height` apart. Neighbors that would overlap are
// merged into a block, which is centered at the mean of their wanted centers.
function spread(wanted, height, low, high) {
  const block = (items) => {
    const reach = items.length * height / 2;
    const middle = items.reduce((sum, i) => sum + wanted[i], 0) / items.length;
    return { items, reach, center: Math.max(low + reach, Math.min(high - reach, middle)) };
  };
  const blocks = [];
  for (const i of wanted.map((_, k) => k).sort((a, b) => wanted[a] - wanted[b])) {
    let last = block([i]);
    while (blocks.length && blocks.at(-1).center + blocks.at(-1).reach > last.center - last.reach) {
      last = block([...blocks.pop().items, ...last.items]);
    }
    blocks.push(last);
  }
  const at = [];
  for (const { items, center } of blocks) {
    items.forEach((i, k) => { at[i] = center + (k - (items.length - 1) / 2) * height; });
  }
  return at;
}
