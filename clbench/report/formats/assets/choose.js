// Choose a method under constraints. The page contains all numbers, texts and test results; this script only looks them up.

const [SHOWN, UNTESTED, INCONCLUSIVE] = [-1, -2, -3]; // codes for a significant, an untested and an inconclusive difference
const ROWS = 8; // most rows and names that are listed

function choosing(section) {
  const { kinds, settings } = JSON.parse(section.dataset.choice);
  const fields = make("fieldset", { class: "limits" });
  fields.append(make("legend", { class: "hush" }, "Constraints"));
  const sliders = kinds.map(([, title, , amounts, texts]) => {
    const label = make("label", {}, `${title[0].toUpperCase()}${title.slice(1)}, at most`);
    const [shown, input] = [make("output"), make("input", { type: "range", min: 0, max: amounts.length, step: 1, value: amounts.length })];
    label.append(shown, input);
    if (amounts.length > 1) fields.append(label);
    return { input, get most() { return Number(input.value); }, get used() { return this.most < amounts.length; },
      update() { shown.textContent = this.used ? texts[this.most] : "any"; input.setAttribute("aria-valuetext", shown.textContent); } };
  });
  const [samples, unknown] = ["No stored samples", "Task ID unknown"].map((text) => {
    const [label, box] = [make("label", { class: "tick" }), make("input", { type: "checkbox" })];
    label.append(box, make("span", {}, text));
    fields.append(label);
    return box;
  });
  const command = make("code");
  const pre = make("pre", { tabindex: "0", role: "region", "aria-label": "The same as a command" });
  const [line, shown] = [make("div", { class: "command" }), make("div")];
  const brief = make("p", { role: "status", class: "hush" }); // screen readers announce a change of the choice
  pre.append(command);
  line.append(pre);
  const limits = () => [ // `refuses` returns the reason why a method is excluded, or nothing
    ...sliders.map((slider, k) => slider.used && { flag: `--max-${kinds[k][0]} ${kinds[k][3][slider.most]}`,
      name: `${kinds[k][1]} ≤ ${kinds[k][4][slider.most]}`, refuses: (method) => refusal(method[3 + k], slider.most, kinds[k]) }),
    samples.checked && { flag: "--no-samples-kept", name: "no stored samples",
      refuses: (method) => [, "stores samples", "replay samples not recorded"].at(method[2]) },
  ].filter(Boolean);
  const apply = () => {
    for (const slider of sliders) slider.update();
    const active = limits();
    command.textContent = [`clbench choose RUN${settings[0][4][3]}`, ...active.map(({ flag }) => flag), ...unknown.checked ? ["--task-id unknown"] : []].join(" ");
    const chosen = settings.filter(([, , given]) => !(unknown.checked && given));
    brief.textContent = chosen.map((setting) => `${setting[1]}: ${setting[5][bestOf(setting[5], active)]?.[0] ?? "none"}`).join("; ");
    shown.replaceChildren(...chosen.map((setting) => chosenOf(setting, kinds, active)),
      ...chosen.length ? [] : [make("p", {}, "Every setting here gives the task ID at test time. Run with --scenario class or domain.")]);
  };
  fields.addEventListener("input", apply);
  section.append(fields, brief, shown, make("p", { class: "key" }, "This command does the same; RUN is the run folder:"), line);
  apply();
}

function refusal(place, most, [, title, words, , texts]) {
  if (place < 0) return `${title} not recorded`;
  return place > most ? `${words} ${texts[place]}` : undefined;
}

// Return the index of the best method that no limit excludes, or -1 if there is none. Methods are sorted, best first.
function bestOf(methods, limits) {
  return methods.findIndex((method) => !limits.some(({ refuses }) => refuses(method)));
}

// Show the choice among a setting's methods under some constraints.
function chosenOf([id, title, , seeds, [metric, unit, column], methods, beside, incomplete], kinds, limits) {
  const points = (difference) => (typeof difference === "string" ? difference : (difference / 100).toFixed(2));
  const pair = (a, b) => {
    const [difference, half, evidence] = beside[a].slice(3 * (b - a - 1), 3 * (b - a));
    return [`${points(difference)} ± ${half === null ? "n/a" : points(half)}`, evidence];
  };
  const first = bestOf(methods, limits);
  const left = methods.flatMap((method, i) => limits.some(({ refuses }) => refuses(method)) ? [] : [i]);
  const made = make("article", { "data-setting": id });
  const heading = make("h3");
  heading.append(make("a", { href: `#${id}` }, title));
  const within = limits.length ? `meet the constraints: ${limits.map(({ name }) => name).join(", ")}` : "have all results";
  made.append(heading, make("p", {}, `${left.length} of ${methods.length + incomplete.length} methods ${within}.`));
  if (first < 0) made.append(make("p", { class: "chosen" }, "No method meets all constraints."));
  else {
    const text = make("p", { class: "chosen" }, "Choose ");
    text.append(make("strong", {}, methods[first][0]), `: ${metric} ${methods[first][1]} over ${seeds[first]} seed${seeds[first] === 1 ? "" : "s"}.`);
    made.append(text, remaining(methods, left, pair, kinds, title, [column, `lead of the choice${unit && ` (${unit})`}`]));
    if (left.length > ROWS) made.append(make("p", { class: "key" }, `And ${left.slice(ROWS).map((i) => methods[i][0]).join(", ")}.`));
  }
  const list = make("ul");
  for (const limit of limits) {
    const without = bestOf(methods, limits.filter((other) => other !== limit));
    if (without < 0) continue;
    const best = `without it, the best method is ${methods[without][0]}, ${metric} ${methods[without][1]}`;
    const cost = first < 0 ? best : without === first ? `costs nothing: ${methods[first][0]} is the best method without it too`
      : `costs ${pair(without, first)[0]}${unit && ` ${unit}`} of ${metric}: ${best}`;
    list.append(make("li", {}, `${limit.name}${first < 0 ? ":" : ""} ${cost}`));
  }
  const out = [...incomplete.map((label) => `${label} (not every seed gave a result)`), ...methods.flatMap((method) => {
    const why = limits.map(({ refuses }) => refuses(method)).filter(Boolean);
    return why.length ? [`${method[0]} (${why.join(", ")})`] : [];
  })];
  if (out.length) list.append(make("li", {}, `left out: ${out.slice(0, ROWS).join(", ")}${out.length > ROWS ? ` and ${out.length - ROWS} more` : ""}`));
  if (list.children.length) made.append(list);
  return made;
}

// Return a table of the remaining methods, best first, with the difference of the best to each.
function remaining(methods, left, pair, kinds, title, headings) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  const counted = kinds.filter(([, , , amounts]) => amounts.length);
  for (const text of ["method", ...headings, "evidence", ...counted.map(([, name]) => name)]) {
    head.append(make("th", { scope: "col", ...text === "evidence" && { class: "text" } }, text));
  }
  const body = table.createTBody();
  for (const i of left.slice(0, ROWS)) {
    const [label, final, , ...places] = methods[i];
    const [difference, evidence] = i === left[0] ? ["", ""] : pair(left[0], i);
    const words = evidence === "" ? "the choice" : evidence === SHOWN ? "significantly worse" : evidence === UNTESTED ? "not tested"
      : evidence === INCONCLUSIVE ? "inconclusive"
      : `no significant difference${evidence ? `; about ${evidence.toLocaleString("en")} seeds would be needed` : ""}`;
    const row = body.insertRow();
    row.append(make("th", { scope: "row" }, label), make("td", {}, final), make("td", {}, difference), make("td", { class: "t" }, words),
      ...counted.map((kind) => make("td", {}, kind[4][places[kinds.indexOf(kind)]] ?? "–")));
  }
  const scroll = make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Methods that are left: ${title}` });
  scroll.append(table);
  return scroll;
}
