"""Write the measurements as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from measure import FLOOR, LOOP, STOCK, Row, floor_fraction, median_ratio, void_rows
from tabulate import tabulate

HEAD = ["contender", "training /s", "evaluation /s", "whole trial /s", "(min to max)", "whole ÷ stock", "eval. ÷ stock",
        "training ÷ loop", "of floor", "final acc.", "learned acc.", "peak MB", "ready after s"]
LEGEND = """\
Samples per second, {repeats}. *whole trial*: new training samples over the wall time of training,
consolidation and all evaluations (before training and after each task, whole test stream). *÷ stock*: over Avalanche
with its defaults. *÷ loop*: over the hand-written tensor loop. *of floor*: the time that the step's matrix products
alone take at the rate measured in the same run, over the training time. *final*: mean accuracy over the tasks at the
end; *learned*: on each task just after it, in %, means over seeds and repeats. *peak MB*: of the process with its
imports, worker processes added. *ready after*: from the start of the process to the first thing timed (imports, data,
warm-up). A row marked **void** learned something else than the others, and its speed counts for nothing."""


def render(groups: Mapping[tuple[str, str, int], Sequence[Row]], machine: Mapping[str, Any]) -> str:
    """Return the report."""
    busy = [o.others for rows in groups.values() for row in rows for o in row.outcomes if o.others is not None]
    told = f"kept {statistics.median(busy):.2f} cores busy (median), up to {max(busy):.2f}" if busy else "unknown"
    once = all(len(row.outcomes) < 2 for rows in groups.values() for row in rows)
    legend = LEGEND.format(repeats="one repeat: no spread known" if once else "medians over repeats")
    parts = ["# Speed, side by side", legend, facts({**machine, "other processes": told})]
    floors = {(model, batch): row for (model, _, batch), rows in groups.items() for row in rows
              if row.contender == FLOOR and row.outcomes}
    for (model, method, batch), rows in groups.items():
        parts.append(f"## {model}, {method}, batch {batch}")
        floor = floors.get((model, batch))
        if floor:
            best = statistics.median(o.rate for o in floor.outcomes)
            parts.append(f"One training step: {floor.outcomes[0].flops / 1e6:,.1f} MFLOP; its matrix products alone "
                         f"run at {best / 1e9:,.1f} GFLOP/s.")
        parts.append(table(rows, floor, batch))
        if void_rows(rows) is None:
            parts.append("Accuracies were not judged: one value each says nothing about noise (take more repeats).")
        parts += [f"{row.contender}: failed, {row.error}" for row in rows if row.error]
    return "\n\n".join(parts) + "\n"


def facts(machine: Mapping[str, Any]) -> str:
    """Return the description of the machine and the run."""
    return tabulate([[key, value] for key, value in machine.items()], ["machine and run", ""], tablefmt="github",
                    disable_numparse=True)


def table(rows: Sequence[Row], floor: Row | None, batch_size: int) -> str:
    """Return the table of one group."""
    by_name = {row.contender: row for row in rows}
    refused = void_rows(rows) or set()
    empty = Row("", ())
    stock, loop = by_name.get(STOCK, empty), by_name.get(LOOP, empty)
    lines = []
    for row in rows:
        if row.contender == FLOOR or not row.outcomes:
            continue
        whole = row.rates("whole")
        fraction = floor_fraction(row, floor, batch_size) if floor else None
        lines.append([
            row.contender + (" **void**" if row.contender in refused else ""),
            amount(row.rates("train")), amount(row.rates("evaluate")), amount(whole),
            f"{min(whole):,.0f} to {max(whole):,.0f}" if len(whole) > 1 else "-",
            times(median_ratio(whole, stock.rates("whole"))),
            times(median_ratio(row.rates("evaluate"), stock.rates("evaluate"))),
            times(median_ratio(row.rates("train"), loop.rates("train"))),
            f"{fraction:.0%}" if fraction is not None else "-",
            *(f"{100 * statistics.fmean(row.accuracies(kind)):.1f}" for kind in ("final", "learned")),
            f"{statistics.median(o.peak_bytes for o in row.outcomes) / 2**20:,.0f}",
            f"{statistics.median(o.ready_after for o in row.outcomes):.1f}"])
    return tabulate(lines, HEAD, tablefmt="github", disable_numparse=True,
                    colalign=["left", *["right"] * (len(HEAD) - 1)])


def amount(rates: Sequence[float]) -> str:
    """Return the median as text, or a dash if there are no values."""
    return f"{statistics.median(rates):,.0f}" if rates else "-"


def times(ratio: float | None) -> str:
    """Return a ratio as text, or a dash if there is none."""
    return "-" if ratio is None else f"{ratio:.2f}"
