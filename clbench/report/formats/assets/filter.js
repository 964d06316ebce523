// Filter methods by kind and by a part of the name, in the tables and figures of a section.

function filterable(bar, methods, redraw) {
  const section = bar.closest("section");
  const [select, input, shown] = [bar.querySelector("select"), bar.querySelector("input"), bar.querySelector("output")];
  bar.hidden = false;
  const first = methods.filter((method) => method.shown);
  const fewer = first.length < methods.length; // figures show only some of the methods at first
  if (fewer) {
    select.prepend(make("option", {}, "all methods in tables, the leading ones in figures"));
    select.selectedIndex = 0;
  }
  const apply = () => {
    const part = input.value.trim().toLowerCase();
    const all = select.selectedIndex <= Number(fewer);
    const wanted = methods.filter(({ button, label }) => (all || button.dataset.kinds.split("|").includes(select.value))
      && label.toLowerCase().includes(part));
    const drawn = fewer && select.selectedIndex === 0 && !part ? first : wanted;
    for (const method of methods) method.button.setAttribute("aria-pressed", String(drawn.includes(method)));
    const hidden = methods.filter((method) => !wanted.includes(method)).map(({ label }) => label);
    for (const row of section.querySelectorAll("tr[data-row]")) {
      row.hidden = hidden.includes(row.dataset.label);
    }
    shown.textContent = !wanted.length ? "No method matches." : wanted.length < methods.length ? `${wanted.length} of ${methods.length}` : "";
    redraw();
  };
  select.addEventListener("change", apply);
  input.addEventListener("input", apply);
}

// Build the tables of R. The page has them as numbers because there are many.
function unpack(place) {
  const hints = place.dataset.hints.split("\n");
  for (const [id, title, unit, labels, columns, values] of JSON.parse(place.dataset.matrices)) {
    const cellOf = (v) => (typeof v === "string" ? make("td", {}, v) : make("td", { "data-v": v / 10000 }, (v / 100).toFixed(2)));
    const table = make("table", { id });
    table.append(make("caption", {}, title));
    const head = table.createTHead().insertRow();
    head.append(make("th", { scope: "col" }, "row"));
    columns.forEach((column, j) => head.append(make("th", { scope: "col", class: unit, "data-unit": unit,
      "data-title": column, ...hints[j] && { title: hints[j] } }, column + (UNITS[unit] ? ` (${UNITS[unit].trim()})` : ""))));
    const body = table.createTBody();
    values.forEach((cells, i) => {
      const row = body.insertRow();
      row.dataset.row = i;
      row.append(make("th", { scope: "row" }, labels[i]), ...cells.map(cellOf));
    });
    const scroll = make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": title });
    scroll.append(table);
    place.append(scroll);
  }
}
