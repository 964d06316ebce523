"""`clbench compare` and `clbench diff`: differences between the methods of a run, and between two runs.

`clbench compare` prints paired differences with their tests. `clbench diff` shows what changed, without torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clbench.cli.common_options import PATH
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.report.analysis.run_diff import MethodPair
    from clbench.results.records import Record

_SHOWN = 40  # changed trials that are listed
COMPARE_EXAMPLES = (
    ("clbench compare runs/mine --baseline naive", "compares each method with naive"),
    ("clbench compare runs/mine --metric ACC --format md", "compares all pairs and prints Markdown"),
)


@click.command("compare", cls=Command, examples=COMPARE_EXAMPLES)
@click.argument("directory", type=PATH, metavar="RUN")
@click.option("--baseline", metavar="METHOD", help="Method to compare all others with, by its label in the tables, "
              "instead of comparing all pairs. Fewer tests need fewer seeds.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Metric to compare, such as ACC, "
              "forgetting, BWT, FWT, AIA, 'learning accuracy', intransigence, 'task inference' or 'training time'; for "
              "language models NLL, 'learned NLL', exact or 'learned exact'; for regression RMSE or R²; repeatable.  "
              "[default: ACC, forgetting; NLL, forgetting, exact; or RMSE, forgetting, R²]")
@click.option("--format", "form", type=click.Choice(["text", "md"]), default="text", show_default=True,
              help="Format of the output.")
def compare_methods(directory: Path, baseline: str | None, metrics: tuple[str, ...], form: str) -> None:
    """Test the differences between the methods of a run folder, paired by seed.

    For each pair of methods, clbench prints the difference with its 95% confidence interval, the p-value, the
    Holm-corrected p-value, the effect size (Hedges' g) and a verdict. It uses the seeds that both methods have. Final
    values are tested by t-tests over seeds and test samples, if all seeds share the samples and the result of each is
    known. Other tests are sign-flip tests if there are enough seeds, and paired t-tests otherwise. Reference methods
    (naive, frozen, joint, ...) are compared only with --baseline, or if there is only one other method.
    """
    from clbench.cli.report import read_records
    from clbench.report.analysis.paired_tests import compare
    from clbench.report.analysis.readable import name_settings
    from clbench.report.columns import find_tested
    from clbench.report.formats.markdown import escape, tables
    from clbench.report.formats.terminal import show_tables, standard_output

    settings = name_settings(read_records([directory]), baseline, f"clbench report {shlex.quote(str(directory))}")
    all_measures = [m for s in settings for m in s.measures]
    for setting in settings:
        measures = find_tested(metrics, setting.measures, all_measures)
        if not measures:
            continue
        verdicts, comparisons = compare(setting, measures, setting.named_baseline)
        if form == "md":
            click.echo(tables(f"## {escape(setting.title)}", comparisons, verdicts) + "\n")
        else:
            show_tables(setting.title, comparisons, verdicts, standard_output())
            click.echo()


DIFF_EXAMPLES = (("clbench diff runs/before runs/after", "exits with 1 if the runs differ"),)


@click.command("diff", cls=Command, examples=DIFF_EXAMPLES)
@click.argument("before", type=PATH, metavar="A")
@click.argument("after", type=PATH, metavar="B")
def diff_runs(before: Path, after: Path) -> int:
    """Show what changed between the run folders A and B.

    clbench lists the trials that only one folder has, and the trials whose results differ. For each method, it shows
    the means in A and B over the shared seeds, with the 95% confidence interval of the change. It also lists
    differences in versions, machines and devices.

    The exit code is 0 if both folders have the same trials and results, 1 if they differ, and 2 if a folder has no
    records. Running times, notes, versions, machines and devices do not count.
    """
    from clbench.report.analysis import run_diff
    from clbench.report.formats.terminal import show_lines, show_table, standard_output
    from clbench.report.formatting import plural
    from clbench.results import diff
    from clbench.results.diff import group_by_method

    console = standard_output()
    command = click.get_current_context().command_path.split()
    runs = [diff.merge_runs([before], [*command, diff.RUN, str(after)]),
            diff.merge_runs([after], [*command, str(before), diff.RUN])]
    for run in runs:
        for problem in run.problems:
            click.echo(f"Warning: {problem}", err=True)
    a, b = (group_by_method(run.records) for run in runs)
    changes = diff.compare(a, b)
    shared_count, notes_only = changes.same + len(changes.changed), sum(c.notes_only for c in changes.changed)
    show_lines([f"A: {before}, {plural(len(a), 'trial')}", f"B: {after}, {plural(len(b), 'trial')}",
                f"{plural(shared_count, 'trial')} in both, {len(changes.changed) - notes_only} with different facts"
                + (f", {notes_only} with different notes only" if notes_only else "")], console)
    pairs = [pair for pair in run_diff.pairs(a, b) if pair.differs]
    for table in run_diff.tables(pairs):
        show_lines(["", table.title], console, "bold")
        show_table(table, console)
    facts: list[str] = []
    for change in changes.changed[:_SHOWN]:
        facts += [diff.name_trial(change.before), *(f"  {fact}" for fact in change.differences)]
    if len(changes.changed) > _SHOWN:
        facts.append(f"and {plural(len(changes.changed) - _SHOWN, 'more trial')}")
    for heading, lines in (("only in A", _trials(changes.only_before)), ("only in B", _trials(changes.only_after)),
                           ("settings, A -> B", _settings(pairs)), ("facts, A -> B", facts),
                           ("provenance, A -> B", _provenance(a, b))):
        listed = list(lines)
        if listed:
            show_lines([f"{heading}:"], console, "bold")
            show_lines((f"  {line}" for line in listed), console)
    return int(changes.any)


def _trials(records: Sequence[Record]) -> Iterator[str]:
    """Return the names of trials, with one line for each method in each setting."""
    from clbench.report.analysis import notes
    from clbench.report.formatting import clean, list_seeds

    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((*record.trial.environment, record.label), []).append(record)
    for group in groups.values():
        yield f"{clean(group[0].label)}, {notes.title(group[0])}: {list_seeds([r.trial.seed for r in group])}"


def _settings(pairs: Sequence[MethodPair]) -> Iterator[str]:
    """Describe how the settings of compared methods differ. Methods with the same differences share a line."""
    from clbench.report.analysis import notes
    from clbench.report.formatting import clean
    from clbench.results import diff

    groups: dict[str, list[str]] = {}
    for pair in pairs:
        if lines := list(diff.setting(pair.before[0], pair.after[0])):
            differences = f"{notes.title(pair.before[0])}: {'; '.join(lines)}"
            groups.setdefault(differences, []).append(pair.before[0].label)
    for differences, labels in groups.items():
        yield clean(f"{differences} ({', '.join(labels)})")


def _provenance(a: Sequence[Record], b: Sequence[Record]) -> Iterator[str]:
    from clbench.report.analysis import notes

    old, new = ({**{f"version of {package}": " / ".join(versions)
                    for package, versions in notes.package_versions(records).items()},
                 **dict(notes.provenance(records))} for records in (a, b))
    for name in dict.fromkeys([*old, *new]):
        if name not in ("versions", "started") and old.get(name) != new.get(name):
            yield f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
