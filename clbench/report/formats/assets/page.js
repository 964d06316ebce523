// Make the page interactive: draw the figures at the available width, and show values under the pointer or by keyboard.

const KINDS = { lines: drawLines, heat: drawHeat, bars: drawBars, steps: drawSteps, seeds: drawSeeds, ranks: drawRanks,
  pareto: drawPareto, arrival: drawArrival, parts: drawParts };
const STYLES = { // CSS properties that are copied into a saved figure, with their default values
  fill: "rgb(0, 0, 0)", "fill-opacity": "1", stroke: "none", "stroke-width": "1px", "stroke-dasharray": "none",
  "stroke-linejoin": "miter", "paint-order": "normal", opacity: "1", "font-family": "", "font-size": "", "font-weight": "400",
};
const tip = document.getElementById("tip");
let follow = null; // moves the tooltip of a value selected by keyboard to the present place of its mark

function draw(figure, stage, width, methods) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", width);
  stage.replaceChildren(svg);
  const shown = methods.filter((method) => method.shown);
  const { height, marks } = shown.length ? KINDS[figure.dataset.kind](svg, width, figure, shown) : { height: 40, marks: [] };
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, height })) svg.setAttribute(key, value);
  return { svg, marks };
}

function live(figure, methods) {
  const stage = figure.querySelector(".stage");
  let width = 0;
  const redraw = () => {
    if (!width) return;
    hide(stage);
    const { svg, marks } = draw(figure, stage, width, methods);
    svg.setAttribute("role", "application");
    svg.setAttribute("aria-roledescription", "figure");
    svg.setAttribute("aria-label", `${figure.dataset.alt} Arrow keys go from value to value.`);
    svg.setAttribute("tabindex", "0");
    explore(svg, marks);
  };
  new ResizeObserver(([entry]) => {
    const found = Math.floor(entry.contentRect.width);
    if (found && found !== width) { width = found; redraw(); } // 0: no method is chosen, so the figure is not shown
  }).observe(stage);
  for (const input of figure.querySelectorAll("input")) input.addEventListener("change", redraw);
  const button = make("button", { type: "button", class: "download" }, "SVG");
  button.setAttribute("aria-label", `Download as SVG: ${figure.querySelector("h4").textContent}`);
  button.addEventListener("click", () => download(figure, methods));
  figure.querySelector("figcaption").append(button);
  return redraw;
}

// Name and highlight the mark that is nearest to the pointer or selected by arrow keys.
function explore(svg, marks) {
  let current = -1;
  const show = (i, keyboard = false) => {
    current = i;
    const mark = marks[i];
    svg.querySelector(".ring")?.remove();
    shape(svg, "rect", { x: mark.x0 - 2, y: mark.y0 - 2, width: mark.x1 - mark.x0 + 4, height: mark.y1 - mark.y0 + 4, rx: 4,
      class: "ring" });
    for (const g of svg.querySelectorAll("g.of")) g.classList.toggle("dim", Number(g.dataset.row) !== mark.row);
    const place = () => {
      const frame = svg.getBoundingClientRect();
      showTip(mark, frame.left + (mark.x0 + mark.x1) / 2, frame.top + mark.y0);
    };
    place();
    follow = keyboard ? place : null;
  };
  const leave = () => { if (!follow) hide(svg); }; // the pointer does not hide a value selected by keyboard
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const i = nearest(marks, event.clientX - frame.left, event.clientY - frame.top);
    if (i < 0) leave();
    else if (i !== current || !tip.classList.contains("shown")) show(i);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("focus", () => { if (marks.length && svg.matches(":focus-visible")) show(Math.max(current, 0), true); });
  svg.addEventListener("blur", () => hide(svg));
  svg.addEventListener("keydown", (event) => {
    const next = event.key === "Escape" ? -1 : step(marks, current, event.key);
    if (next === null || !marks.length) return;
    event.preventDefault();
    if (next < 0) hide(svg);
    else show(next, true);
  });
}

function nearest(marks, x, y) {
  let [found, least] = [-1, 24];
  marks.forEach((mark, i) => {
    const away = Math.hypot(Math.max(mark.x0 - x, 0, x - mark.x1), Math.max(mark.y0 - y, 0, y - mark.y1));
    const center = Math.hypot((mark.x0 + mark.x1) / 2 - x, (mark.y0 + mark.y1) / 2 - y) / 1000; // prefers the nearer center if two marks contain the point
    if (away + center < least) [found, least] = [i, away + center];
  });
  return found;
}

// Left and right keys move within a method, up and down keys to the same position of another method.
function step(marks, current, key) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (by) return Math.max(0, Math.min(marks.length - 1, current + by));
  const across = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (!across) return null;
  const rows = [...new Set(marks.map((mark) => mark.row))];
  const here = marks[Math.max(current, 0)];
  const row = rows[Math.max(0, Math.min(rows.length - 1, rows.indexOf(here.row) + across))];
  const same = marks.findIndex((mark) => mark.row === row && mark.step === here.step);
  return same >= 0 ? same : marks.findIndex((mark) => mark.row === row);
}

function showTip(mark, x, y) {
  tip.replaceChildren(make("strong", {}, mark.title), ...mark.lines.filter(Boolean).map((line) => make("span", {}, line)));
  tip.classList.add("shown");
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(6, Math.min(document.documentElement.clientWidth - width - 6, x - width / 2));
  tip.style.left = `${left}px`;
  tip.style.top = `${y - height - 10 < 6 ? y + 22 : y - height - 10}px`;
}

function hide(within) {
  tip.classList.remove("shown");
  follow = null;
  within.querySelector(".ring")?.remove();
  for (const g of within.querySelectorAll(".dim")) g.classList.remove("dim");
}

// Save a figure as a separate file, drawn again in the light colors, 760 pixels wide, with its styles inside.
function download(figure, methods) {
  const stage = make("div", { class: "light sheet", "aria-hidden": "true" });
  document.body.append(stage);
  const { svg } = draw(figure, stage, 760, methods);
  const title = `${figure.querySelector("h4").textContent}: ${figure.closest("section").querySelector("h2").textContent}`;
  for (const one of svg.querySelectorAll("*")) {
    const style = getComputedStyle(one);
    for (const [name, usual] of Object.entries(STYLES)) {
      const value = style.getPropertyValue(name);
      if (value !== usual && (one.localName === "text" || !name.startsWith("font"))) one.setAttribute(name, value);
    }
  }
  for (const one of svg.querySelectorAll("[class]")) one.removeAttribute("class");
  const [width, height] = ["width", "height"].map((name) => Number(svg.getAttribute(name)));
  svg.setAttribute("viewBox", `-12 -12 ${width + 24} ${height + 24}`);
  const paper = shape(svg, "rect", { x: -12, y: -12, width: width + 24, height: height + 24,
    fill: getComputedStyle(stage).backgroundColor });
  svg.prepend(paper);
  svg.prepend(shape(svg, "desc", {}, figure.dataset.alt));
  svg.prepend(shape(svg, "title", {}, title));
  stage.remove();
  const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" }));
  make("a", { href: url, download: `${figure.dataset.file}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Return a function that says how many methods the figures show, if at first they do not show all. It hides empty figures.
function describeShown(figures, methods) {
  const sentence = make("p", { class: "key selection", role: "status" });
  figures.querySelector(".legend").before(sentence);
  const first = methods.filter((method) => method.shown);
  return () => {
    const shown = methods.filter((method) => method.shown);
    figures.classList.toggle("empty", !shown.length);
    if (!shown.length) sentence.textContent = "No method is chosen, so there is no figure. Use the buttons to add methods.";
    else if (first.length === methods.length) sentence.textContent = "";
    else if (shown.length === methods.length) sentence.textContent = `These figures show all ${methods.length} methods.`;
    else {
      const which = shown.length === first.length && shown.every((method) => first.includes(method)) ? `: ${figures.dataset.leading}` : "";
      sentence.textContent = `These figures show ${shown.length} of ${methods.length} methods${which}. Use the buttons to add others.`;
    }
    sentence.hidden = !sentence.textContent;
  };
}

for (const place of document.querySelectorAll(".packed")) unpack(place);
for (const section of document.querySelectorAll("[data-choice]")) choosing(section);
for (const command of document.querySelectorAll(".command")) copyable(command);
for (const table of document.querySelectorAll("table.sortable")) sortable(table);
for (const figures of document.querySelectorAll(".figures")) {
  figures.hidden = false;
  const methods = readMethods(figures.querySelector(".legend"));
  const updateSentence = describeShown(figures, methods);
  updateSentence();
  const redraws = [updateSentence, ...[...figures.querySelectorAll("figure")].map((figure) => live(figure, methods))];
  const bar = figures.closest("section").querySelector(".filter");
  if (bar) filterable(bar, methods, () => { for (const redraw of redraws) redraw(); });
  for (const method of methods) {
    const key = document.createElementNS(SVG, "svg");
    for (const [name, value] of Object.entries({ viewBox: "0 0 36 14", width: 36, height: 14, "aria-hidden": "true" })) {
      key.setAttribute(name, value);
    }
    const within = group(key, method);
    shape(within, "path", { d: "M0 7H36", class: `line v${method.variant}` });
    marker(within, method, 18, 7, 4);
    method.button.prepend(key);
    method.button.addEventListener("click", () => {
      method.button.setAttribute("aria-pressed", String(!method.shown));
      for (const redraw of redraws) redraw();
    });
  }
}
document.addEventListener("scroll", () => { // the named mark moves away from the pointer
  if (follow) follow(); // the browser scrolls to a figure that gets the focus, and this must not hide its value
  else if (tip.classList.contains("shown")) document.querySelectorAll(".stage svg").forEach(hide);
}, { passive: true });
