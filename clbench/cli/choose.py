"""`clbench choose`: choose a method under constraints, with the evidence and the cost of each constraint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import PATH, metric_option
from clbench.cli.help import Command
from clbench.core.errors import list_names
from clbench.core.objective import ACCURACY

if TYPE_CHECKING:
    from clbench.report.analysis.choosing import Choice, Rival

AMOUNT = ("a number (5MB, 20k), a share or multiple of the baseline's value (1%, 2x), or a multiple of another "
          "method's (2x-er)")
SHOWN = 8  # largest number of methods that a line names


@click.command("choose", cls=Command, examples=(
    ("clbench choose runs/mine --task-id unknown --no-samples-kept",
     "chooses the best method without task IDs and stored samples"),
    ("clbench choose runs/mine --max-kept 5MB --max-trainable 1% --max-compute 2x",
     "chooses the best method for a small device"),
))
@click.argument("directories", type=PATH, metavar="RUN...", nargs=-1, required=True)
@click.option("--task-id", type=click.Choice(["known", "unknown"]), help="Task IDs at test time: known "
              "(scenario task) or unknown (scenarios class and domain).  [default: each scenario separately]")
@click.option("--max-kept", metavar="AMOUNT", help=f"Maximum storage after the last task. AMOUNT is {AMOUNT}.")
@click.option("--no-samples-kept", is_flag=True, help="Exclude methods that store training samples.")
@click.option("--max-trainable", metavar="AMOUNT", help="Maximum number of parameters that the last task trains.")
@click.option("--max-compute", metavar="AMOUNT", help="Maximum FLOPs for training on all tasks.")
@click.option("--max-inference", metavar="AMOUNT", help="Maximum FLOPs for predicting one sample after the last task.")
@metric_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True,
              help="Format of the output.")
def command(directories: tuple[Path, ...], task_id: str | None, no_samples_kept: bool, metric: str | None, form: str,
            **limits: str | None) -> int:
    """Choose the best method of a run folder under constraints.

    clbench leaves out the methods that exceed a limit and ranks the others by accuracy (or --metric). It tests which
    of them are significantly worse than the best. For each constraint, it shows how much accuracy the constraint
    costs. Reference methods (naive, frozen, joint, ...) are not ranked. The exit code is 1 if no method meets all
    constraints.
    """
    from clbench.cli.report import read_records
    from clbench.core.errors import SpecError
    from clbench.core.scenario import scenario_rules
    from clbench.report.analysis.advice import more_evidence
    from clbench.report.analysis.choosing import PREFIXES, choose, limit
    from clbench.report.analysis.grouping import group_by_setting
    from clbench.report.analysis.readable import name_settings
    from clbench.results.records import select_metric

    for folder in directories:
        if str(folder).removesuffix("B") in PREFIXES and not folder.exists():
            raise click.UsageError(f"there is no run folder {folder}: write an amount without a space, as in "
                                   f"--max-kept 5{folder}")
    records = select_metric(read_records(directories), metric)
    settings = [s for s in group_by_setting(records) if task_id is None
                or scenario_rules(s.records[0].trial.scenario).task_given == (task_id == "known")]
    if not settings:
        raise SpecError(f"no results in which the task ID is {task_id} at test time: run with --scenario "
                        + ("task" if task_id == "known" else "class or domain"))
    constraints = {name.removeprefix("max_"): value for name, value in limits.items() if value is not None}
    if no_samples_kept:
        constraints["samples"] = "0"
    methods_by_key = {r.key: m for setting in name_settings(records) for m in setting.methods for r in m.records}
    choices = []
    for setting in settings:
        labels: dict[str, str] = {}
        for m in setting.methods:
            readable_method = methods_by_key[m.records[0].key]
            labels |= {readable_method.id: m.label, readable_method.label: m.label}
        choices.append(choose(setting, [limit(setting, name, value, labels) for name, value in constraints.items()]))
    if form == "json":
        click.echo(json.dumps([to_plain_values(choice) for choice in choices], indent=2))
    else:
        texts = []
        for setting, choice in zip(settings, choices, strict=True):
            names = {m.label: methods_by_key[m.records[0].key].label for m in setting.methods}
            evidence = more_evidence(setting, [rival.needed for rival in choice.open]) if choice.best else ""
            texts.append("\n".join(lines(choice, names, evidence)))
        click.echo("\n\n".join(texts))
    return int(any(choice.best is None for choice in choices))


def to_plain_values(choice: Choice) -> dict[str, Any]:
    """Return a choice as plain values. Constraints are as the user passed them, with the resulting numbers."""
    limits = [{"flag": constraint.flag, "counted": constraint.kind.measure.column.title, "most": constraint.most}
              for constraint in choice.limits]
    plain = {name: value for name, value in asdict(choice).items() if name != "metric"}
    return {**plain, "limits": limits, **({} if choice.metric == ACCURACY else {"metric": choice.metric.name})}


def _verdict(rival: Rival) -> str:
    """Return the verdict on a rival that is not significantly worse."""
    return ("equal on every seed" if rival.equal else "not tested" if rival.untested else
            "inconclusive" if rival.inconclusive else "no significant difference")


def lines(choice: Choice, names: Mapping[str, str], evidence: str = "") -> Iterator[str]:
    """Yield the lines that describe a choice.

    `names` are the display names of its methods, and `evidence` says how to run more seeds, if that can help.
    """
    from clbench.report.analysis.choosing import KINDS
    from clbench.report.analysis.method_records import MARKS
    from clbench.report.formatting import difference_unit, interval, number, unit_of, unit_suffix

    label, unit = choice.metric.label, unit_of(choice.metric)
    difference = difference_unit(unit)
    comparison = "less" if choice.metric.direction == "up" else "more"
    total = len(choice.rivals) + len(choice.refused) + (choice.best is not None)
    flags = " ".join(constraint.flag for constraint in choice.limits)
    count = total - len(choice.refused)
    end = f"meet{'s' * (count == 1)} {flags}" if flags else f"{'has' if count == 1 else 'have'} all results"
    yield f"{choice.title}: {count} of {total} methods {end}"
    if choice.best is None or choice.accuracy is None:
        yield f"  no method {'meets all constraints' if choice.limits else 'has a result for every seed'}"
    else:
        counts = [f"{kind.words} {number(value, kind.measure.column.unit)}" for kind in KINDS
                  if (value := choice.costs[kind.name]) is not None]
        yield (f"  choose {names[choice.best]}: {label} {interval(choice.accuracy, choice.half_width, unit)}; "
               + ", ".join(counts))
        for mark in choice.caution:
            yield f"  caution: {names[choice.best]} {mark}. {MARKS[mark]}"
        for rival in choice.open[:SHOWN]:
            reason = ("" if rival.equal else rival.untested if rival.untested
                      else f"{rival.limited:,} test samples are too few, and more seeds will not help" if rival.limited
                      else f"about {rival.needed} seeds would be needed" if rival.needed
                      else f"more than {choice.most_seeds} seeds would be needed"
                      if choice.seeds > 1 and rival.difference
                      else "")
            yield (f"  {_verdict(rival)}: {names[rival.method]} {number(rival.accuracy, unit)}, "
                   f"{interval(rival.difference, rival.half_width, difference)}{unit_suffix(difference)} {comparison}"
                   + (f" ({reason})" if reason else ""))
        for verdict, others in Counter(map(_verdict, choice.open[SHOWN:])).items():
            yield f"  {verdict}: {others} more"
        if worse_rivals := [f"{names[rival.method]} {rival.caution}".strip() for rival in choice.rivals if rival.shown]:
            yield f"  significantly worse: {list_names(worse_rivals, SHOWN)}"
    for price in choice.prices:
        if price.method == choice.best:
            yield f"  {price.flag} costs nothing: {names[price.method]} is the best method without it too"
        elif price.difference is None:
            yield (f"  without {price.flag}, the best method is {names[price.method]}, {label} "
                   f"{number(price.accuracy, unit)}")
        else:
            cost = interval(price.difference, price.half_width, difference)
            yield (f"  {price.flag} costs {cost}{unit_suffix(difference)}: without it, "
                   f"the best method is {names[price.method]}")
    if choice.refused:
        refusals = [f"{names[label]} ({reason})" for label, reason in choice.refused.items()]
        yield "  left out: " + list_names(refusals, SHOWN)
    if evidence:
        yield f"  {evidence}"
