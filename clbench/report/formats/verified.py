"""A verified reference as text for the terminal and verify.md, with published values and ours side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import get_args

from tabulate import tabulate

from clbench.core.scenario import scenario_rules
from clbench.experiment.references import Cell, CellMetric, Reference, Status
from clbench.report.analysis import notes
from clbench.report.formats.markdown import bullets, escape
from clbench.report.formatting import NONE, clean
from clbench.results.verification import Checked, Verdict

CORE, H100 = 50e9, 200e12  # FLOP/s that are assumed for one CPU core and for a GPU
GPU_FROM = 100  # hours on one core, from which on a GPU is needed
LEGEND = f"""\
reference, cells: a published table, and how many of its numbers clbench can repeat.
run, reproduced: cells that the authors of clbench have run, and how many of these match the published number. The
others do not match or are inconclusive (docs/results/verify.md).
needs: what you still need. Pass weights with --weights FILE; without it, `clbench verify NAME` says which they are.
`clbench data` shows which data sets are missing. A GPU is needed if a reference takes more than {GPU_FROM} core hours,
or if one of its methods does not work on a CPU.
core hours, H100 hours: estimated time of all cells and seeds, at 50 GFLOP/s for a core of a CPU and 200 TFLOP/s for an
H100. `clbench verify NAME --dry-run` estimates the time on this machine."""
METRIC_NAMES: dict[CellMetric, str] = {
    "AIA": "average incremental accuracies",
    "ACC-pooled": "final accuracies over all test samples",
    "AIA-pooled": "accuracies over the test samples of the tasks so far, averaged over the tasks",
    "AIA-pooled-all": "accuracies over the test samples of all tasks, averaged over the tasks"}


def format_plain(reference: Reference, checked: Sequence[Checked]) -> str:
    """Return the table with its remarks for a terminal."""
    return "\n".join([f"{clean(reference.title)}: {clean(reference.paper)}, {clean(reference.source)}", "",
                      _table(checked, "simple"), "",
                      *(f"{cell_name}: {text}" for cell_name, text in _remarks(checked)), summary(checked)])


def summary(checked: Sequence[Checked]) -> str:
    """Return the number of cells with each verdict."""
    counts = Counter(result.verdict for result in checked)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict])


def markdown(reference: Reference, checked: Sequence[Checked]) -> str:
    """Return verify.md: source, verdicts, the rule they follow, settings and provenance."""
    rule, records = reference.tolerance, list(chain.from_iterable(result.records for result in checked))
    spreads = (", ± the standard error of the mean" * any(c.sem for c in reference.cells)
               + ", sd is the standard deviation over seeds" * any(c.sd for c in reference.cells))
    allowances = " and what is granted below" if any(c.allowance for c in reference.cells) else ""
    blocks = [f"# {escape(reference.title)}",
              f"{escape(reference.paper)}, {escape(reference.source)}: <{reference.url}>. "
              + (f"Mean of {reference.seeds} seeds{spreads}" if reference.seeds > 1
                 else "One run of each")
              + (f". Code: <{reference.code}>" if reference.code else "") + ".",
              _table(checked, "github", escape),
              f"Final average accuracy: {summary(checked)}. Ours is mean ± standard error; differences and tolerances "
              f"are in points.{_metrics(reference)}"]
    if remarks := [f"{cell_name}: {text}" for cell_name, text in _remarks(checked)]:
        blocks.append(bullets(remarks))
    blocks += ["## Rule", f"A cell is reproduced if the two means differ by no more than its tolerance: the half "
               f"width of Welch's {100 * rule.level:g} % interval of their difference, from both spreads and both "
               f"numbers of seeds, plus {rule.rounding:g} for the rounding of the published figure{allowances}. "
               f"Agreement within a tolerance beyond {rule.widest:g} points is inconclusive. The rule is part "
               "of the reference's file, stated before the runs"
               + (f", except: {escape(rule.amended)}" if rule.amended else ".")]
    exceptions = [f"{_name(c)}: {c.allowance:g} point{'s' * (c.allowance != 1)}, {c.reason}"
                  for c in reference.cells if c.reason]
    exceptions += [f"{_name(c)}: decides up to a tolerance of {c.widest:g} points" for c in reference.cells if c.widest]
    if exceptions:
        blocks.append(bullets(exceptions))
    if reference.notes:
        blocks += ["## Known differences", bullets(reference.notes)]
    if records:
        benchmarks = dict.fromkeys(clean(r.trial.benchmark) for r in records)
        models = dict.fromkeys(clean(r.trial.model) for r in records)
        recipes = dict.fromkeys(notes.recipe(r.trial.trained_by, r.trial.arrival) for r in records)
        methods = dict.fromkeys(f"{r.label}, {scenario_rules(r.trial.scenario).title}: {clean(r.trial.method)}"
                                for r in records)
        blocks += ["## Setting", bullets([*(f"benchmark: {text}" for text in benchmarks),
                                           *(f"model: {text}" for text in models),
                                           *(f"recipe: {text}" for text in recipes), *methods]),
                   "## Provenance", bullets([f"{key}: {value}" for key, value in notes.provenance(records)])]
    return "\n\n".join(blocks) + "\n"


def listing(references: Mapping[str, Reference], statuses: Mapping[str, Status],
            lacking_data: Collection[str]) -> str:
    """Return a table with a line for each reference, followed by the meaning of its columns.

    Args:
        references: the references by name.
        statuses: by name, the status of each reference whose work was counted.
        lacking_data: names of the references whose data are missing.
    """
    rows = []
    for name, reference in references.items():
        status = statuses.get(name, Status())
        flops = None if status.flops is None else status.flops * len(reference.spec(reference.cells[0]).seeds)
        core_hours = None if flops is None else flops / CORE / 3600
        needs = [*(["weights"] if reference.weights else []), *(["data"] if name in lacking_data else []),
                 *(["GPU"] if (core_hours or 0) > GPU_FROM or any(cell.gpu for cell in reference.cells) else [])]
        judged = {verdict: count for verdict, count in status.verdicts.items() if verdict != "not run"}
        rows.append([name, len(reference.cells), sum(judged.values()), judged.get("reproduced", 0) if judged else NONE,
                     ", ".join(needs) or NONE, _hours(core_hours),
                     _hours(None if flops is None else flops / H100 / 3600)])
    table = tabulate(rows, headers=["reference", "cells", "run", "reproduced", "needs", "core hours", "H100 hours"],
                     disable_numparse=True, colalign=["left", *["right"] * 3, "left", *["right"] * 2])
    return f"{table}\n\n{LEGEND}"


def _hours(hours: float | None) -> str:
    """Return hours with two significant digits, such as 0.42 or 1,300, or a dash if the work was not counted."""
    if hours is None:
        return NONE
    return f"{float(f'{hours:.2g}'):,g}" if hours >= 0.01 else "under 0.01"


def _metrics(reference: Reference) -> str:
    """Describe the metrics that cells name in parentheses."""
    metrics = dict.fromkeys(cell.metric for cell in reference.cells if cell.metric != "ACC")
    return "".join(f" Numbers with ({metric}) are {METRIC_NAMES[metric]}." for metric in metrics)


def _label(cell: Cell) -> str:
    return cell.label + ("" if cell.metric == "ACC" else f" ({cell.metric})")


def _name(cell: Cell) -> str:
    return f"{_label(cell)}, {scenario_rules(cell.scenario).title}"


def _format_published(cell: Cell) -> str:
    spread = f" ± {cell.sem:.2f}" if cell.sem else f" (sd {cell.sd:.2f})" if cell.sd else ""
    return f"{cell.published:.2f}{spread}"


def _format_measured(one: Checked) -> str:
    if one.mean is None:
        return NONE
    return f"{one.mean:.2f}" + (f" ± {one.error:.2f}" if one.error is not None else "")


_TEXTS = ("scenario", "method", "verdict")  # columns that are aligned to the left
_COLUMNS: dict[str, Callable[[Checked], str]] = {
    "scenario": lambda one: one.cell.scenario,
    "method": lambda one: clean(_label(one.cell)),
    "published (%)": lambda one: _format_published(one.cell),
    "ours (%)": _format_measured,
    "seeds": lambda one: str(len(one.accuracies)),
    "difference": lambda one: NONE if one.difference is None else f"{one.difference:+.2f}",
    "tolerance": lambda one: NONE if one.tolerance is None else f"{one.tolerance:.2f}",
    "verdict": lambda one: one.verdict,
}


def _table(checked: Sequence[Checked], style: str, escaped: Callable[[str], str] = str) -> str:
    """Return the table of cells in a style of `tabulate`."""
    rows = [[escaped(text(result)) for text in _COLUMNS.values()] for result in checked]
    return tabulate(rows, list(_COLUMNS), style, disable_numparse=True,
                    colalign=["left" if title in _TEXTS else "right" for title in _COLUMNS])


def _remarks(checked: Sequence[Checked]) -> list[tuple[str, str]]:
    remarks: list[tuple[str, str]] = []
    for result in checked:
        remarks += [(_name(result.cell), remark) for remark in result.remarks]
    return remarks
