// Make tables sortable. The first click sorts by the mean, better first; the second reverses the order; the third restores it.

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
      [...table.tBodies].forEach((body, i) => body.append(...next ? sorted(original[i], column, next, th.dataset.unit ?? "text") : original[i]));
    });
  });
}

function sorted(rows, column, order, unit) {
  const sign = order === "ascending" ? 1 : -1;
  const found = new Map(rows.map((row) => [row, numbersOf(row.cells[column], unit).value]));
  const numeric = [...found.values()].some((value) => value !== null);
  return [...rows].sort((a, b) => {
    const [p, q] = [found.get(a), found.get(b)];
    if (!numeric) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
    if (p === null || q === null) return (q !== null) - (p !== null); // cells without a number come last
    return sign * (p - q);
  });
}
