"""`clbench compare`: paired differences between the methods of a run folder, and whether they are real."""

from __future__ import annotations

from pathlib import Path

import click

from clbench.cli.help import Command

EXAMPLES = (
    ("clbench compare runs/mine --baseline naive", "each method with one of them"),
    ("clbench compare runs/mine --metric ACC --format md", "each pair, as a table for a text"),
)


@click.command("compare", cls=Command, examples=EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--baseline", metavar="METHOD", help="Compare each method with this one (its label in the tables), not "
              "all pairs; fewer tests need fewer seeds.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Columns to compare; repeatable. ACC, "
              "forgetting, BWT, FWT, AIA, 'learning accuracy', 'intransigence', 'task inference', 'training time'; of "
              "language models NLL, 'learned NLL', exact, 'learned exact' and so on; of numbers RMSE, R² and so on.  "
              "[default: ACC, forgetting; NLL, forgetting, exact; or RMSE, forgetting, R²]")
@click.option("--format", "form", type=click.Choice(["text", "md"]), default="text", show_default=True,
              help="Format of the output.")
def command(directory: Path, baseline: str | None, metrics: tuple[str, ...], form: str) -> None:
    """Compare the methods of a run folder over the seeds that both have.

    For each pair, clbench prints the difference with its 95% interval, the p-value, the p-value with Holm's
    correction, the effect size (Hedges' g) and a verdict. It uses exact sign-flip tests if there are enough seeds,
    else paired t-tests. References (naive, frozen, joint, ...) are compared only with --baseline, or if there is
    only one other method.
    """
    from clbench.cli.report import read_records
    from clbench.report.analysis.paired_tests import compare
    from clbench.report.analysis.readable import readable
    from clbench.report.columns import find_tested
    from clbench.report.formats.markdown import escape, tables
    from clbench.report.formats.terminal import show_tables, standard_output

    for setting in readable(read_records([directory]), baseline, f"clbench report {directory}"):
        measures = find_tested(metrics, setting.measures)
        verdicts, comparisons = compare(setting, measures, setting.named_baseline)
        if form == "md":
            click.echo(tables(f"## {escape(setting.title)}", comparisons, verdicts) + "\n")
        else:
            show_tables(setting.title, comparisons, verdicts, standard_output())
            click.echo()
