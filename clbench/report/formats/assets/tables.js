// Tables that can be sorted: by the mean of a cell, better first; again for the reverse; a third time for the order as given.

function sortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  const original = [...table.tBodies].map((body) => [...body.rows].filter((row) => "row" in row.dataset));
  headers.forEach((th, column) => {
    const button = make("button", { type: "button" }, th.textContent);
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = th.dataset.better === "up" ? "descending" : "ascending";
      const orders = [first, first === "ascending" ? "descending" : "ascending", null];
      const next = orders[(orders.indexOf(th.getAttribute("aria-sort")) + 1) % 3];
      for (const other of headers) other.removeAttribute("aria-sort");
      if (next) th.setAttribute("aria-sort", next);
      [...table.tBodies].forEach((body, i) => body.append(...next ? sorted(original[i], column, next) : original[i]));
    });
  });
}

function sorted(rows, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  const numeric = rows.some((row) => "v" in row.cells[column].dataset);
  return [...rows].sort((a, b) => {
    const [p, q] = [a.cells[column], b.cells[column]];
    if (!numeric) return sign * p.textContent.localeCompare(q.textContent, "en", { numeric: true });
    if (!("v" in p.dataset) || !("v" in q.dataset)) return ("v" in q.dataset) - ("v" in p.dataset); // no number: last
    return sign * (Number(p.dataset.v) - Number(q.dataset.v));
  });
}
