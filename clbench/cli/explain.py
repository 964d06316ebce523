"""`clbench explain`: divide the difference between two experiments among its causes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import PATH, device_option, execution_options, plugin_option, stale_options
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.execution.explaining import Study
    from clbench.execution.reuse import OnStale
    from clbench.execution.run import Experiment
    from clbench.report.explained import Explanation


EXAMPLES = (
    ("clbench explain mine.toml paper.toml --dry-run", "lists the differences and the number of trials"),
    ("clbench explain mine.toml paper.toml --seeds 5", "measures how much each difference contributes"),
)
COMMON = ("metric", "methods", "scenario", "seeds", "max_trials", "device", "data", "workers", "out", "dry_run")


@click.command("explain", cls=Command, examples=EXAMPLES, common=COMMON)
@click.argument("a", type=PATH, metavar="A.toml")
@click.argument("b", type=PATH, metavar="B.toml")
@click.option("--metric", metavar="NAME|A,B", help="Metric to explain, as in clbench compare. Two names are the "
              "metrics of A and of B, and the metric is then a factor, too.  [default: ACC; NLL for language models; "
              "RMSE for regression]")
@click.option("--method", "methods", metavar="NAME", help="Method to explain, if a file has several. If a file lacks "
              "the method, clbench adds it with its default options.")
@click.option("--scenario", metavar="NAME", help="Scenario to explain, if a file has several.")
@click.option("--seeds", metavar="N|LIST", help="Number of seeds or a list such as 0,4.  [default: the seeds "
              "that both files have]")
@device_option("that of A")
@click.option("--max-trials", type=click.IntRange(min=1), default=400, show_default=True, help="Maximum number "
              "of trials. If all combinations of the factors need more, clbench samples some of them.")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [default: runs/explain-A-B]")
@execution_options()
@plugin_option
@stale_options
@click.option("--dry-run", is_flag=True, help="List the factors, the combinations, and the trainable parameters and "
              "FLOPs of each; train nothing and write no records.")
def command(a: Path, b: Path, metric: str | None, max_trials: int, out: Path | None, plugins: tuple[Path, ...],
            stale: OnStale, dry_run: bool, **flags: Any) -> int:
    """Explain why the results of experiments A and B differ.

    clbench lists the settings in which the two files differ and runs combinations of them. It then computes how much
    each of these factors contributes to the difference of the results, as Shapley values with confidence intervals
    over seeds. It writes explain.md, explain.html and all records to the run folder (--out). Settings such as the
    device and the number of workers come from A. If the command is interrupted, run it again to continue.
    """
    from clbench.cli.run import note, run_missing
    from clbench.core.registry import discover
    from clbench.execution import explaining, run

    registry, folder = discover(files=plugins), out or Path("runs") / f"explain-{a.stem}-{b.stem}"
    study = explaining.prepare(a, b, metric, flags, registry, max_trials, folder, note)
    pair = study.pair
    experiment = run.load_run(pair.a, study.planned, registry, folder, stale, note)
    click.echo("\n".join(describe_plan(study, experiment)), err=not dry_run)
    if dry_run:
        from clbench.cli.forecasts import listing, report_unbuilt

        for problem in experiment.problems:
            click.echo(f"Warning: {problem}", err=True)
        first_seed_trials = [planned for planned in study.planned if planned.trial.seed == pair.seeds[0]]
        table, errors = listing(replace(experiment, planned=first_seed_trials), duration=False)
        click.echo(f"\n{table}\n(of seed {pair.seeds[0]})")
        return report_unbuilt(errors)
    exit_code = run_missing(experiment, dry_run=False)
    return conclude(explaining.conclude(study, experiment.records), experiment) if exit_code is None else exit_code


def describe_plan(study: Study, experiment: Experiment) -> list[str]:
    """Describe what will be run: the factors, the combinations and the trials."""
    from clbench.report.formatting import plural

    lines = [f"{factor.name}: {factor.change}" for factor in study.factors]
    lines += [f"{factor.name} are one factor: {factor.why}" for factor in study.factors if factor.why]
    count = len(study.factors)
    design = f"all {2**count} combinations" if not study.orders else f"a sample of {len(study.orders)} orders"
    trials, missing = len(study.planned), len(experiment.missing)
    return [*lines, f"{plural(count, 'factor')}, {design}: {len(study.combinations)} x "
            f"{plural(len(study.pair.seeds), 'seed')} = {plural(trials, 'trial')}"
            + (f", {trials - missing} already done" if missing < trials else "")]


def conclude(explanation: Explanation, experiment: Experiment) -> int:
    """Write explain.md, explain.html and the figure, print the table, and return the exit code."""
    from clbench.report import explained
    from clbench.report.formats.terminal import show_lines, show_table, standard_output
    from clbench.report.writing import write_explained

    paths = write_explained(explanation, experiment.store.directory)
    console = standard_output()
    show_table(explained.table(explanation), console)
    show_lines([explained.headline(explanation)], console, "bold")
    show_lines(explained.remarks(explanation), console, "dim")
    for path in paths:
        click.echo(f"report:  {path}")
    click.echo(f"records: {experiment.store.records}")
    return int(any(record.status != "done" for record in explanation.records))
