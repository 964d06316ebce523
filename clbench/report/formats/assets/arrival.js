// Figure of the arrival of training samples: a row for each class or task, a column for each task during which they arrive.

function drawArrival(svg, width, figure) {
  const { columns, rows } = readTable(figure.dataset.tables);
  const tableRows = document.getElementById(figure.dataset.tables).querySelectorAll("tr[data-row]");
  const labels = new Map([...tableRows].map((tr) => [Number(tr.dataset.row), tr.querySelector("th").textContent]));
  const left = Math.min(170, 16 + Math.max(...[...labels.values()].map((label) => textWidth(label))));
  const cell = Math.min((width - left) / columns.length, 72);
  const tall = 22;
  const marks = [];
  for (const [row, cells] of rows) {
    const total = cells.reduce((sum, { value }) => sum + value, 0) || 1;
    shape(svg, "text", { x: left - 8, y: row * tall + tall / 2 + 4, "text-anchor": "end", class: "label" }, fit(labels.get(row), left - 10));
    cells.forEach(({ value, text }, j) => {
      const [x, y, share] = [left + j * cell, row * tall, value / total];
      heatCell(svg, x + 0.5, y + 0.5, cell - 1, tall - 1, share);
      if (value && cell >= 30) {
        shape(svg, "text", { x: x + cell / 2, y: y + tall / 2 + 4, "text-anchor": "middle",
          class: `small ${share > DEEP ? "on-hot" : "on-cold"}` }, text);
      }
      marks.push({ x0: x, y0: y, x1: x + cell, y1: y + tall, row, step: j, title: labels.get(row),
        lines: [`${columns[j].title}: ${text} (${(100 * share).toFixed(1)} %)`] });
    });
  }
  const bottom = rows.size * tall;
  for (let j = 0; j < columns.length; j += 1) {
    if (columns.length > 20 && (j + 1) % 5) continue;
    shape(svg, "text", { x: left + (j + 0.5) * cell, y: bottom + 14, "text-anchor": "middle", class: "small" }, String(j + 1));
  }
  shape(svg, "text", { x: left, y: bottom + 32, class: "small" }, "arrives during task");
  return { height: bottom + 40, marks };
}
