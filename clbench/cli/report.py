"""`clbench report`: render run folders again from their records, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clbench.cli.common_options import PATH, metric_option, names_in, plugin_option
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.results.records import Record


EXAMPLES = (
    ("clbench report runs/mine", "writes the report again and prints its table"),
    ("clbench report runs/mine --format html,latex,csv", "writes a web page, a LaTeX table and a CSV table"),
    ("clbench report runs/mine --baseline er", "shows how much better or worse than er each method is"),
    ("clbench report runs/mine --metric exact", "ranks methods of language models by exact match"),
    ("clbench report runs/a runs/b --out both", "writes one report for two run folders"),
)


@click.command("report", cls=Command, examples=EXAMPLES)
@click.argument("directories", nargs=-1, required=True, type=PATH, metavar="DIR...")
@click.option("--format", "formats", multiple=True, metavar="LIST",
              help="Report formats, as in md,html,latex,csv,json; repeatable. Plugins can add more.  "
              "[default: md,html]")
@click.option("--figures", "kinds", multiple=True, metavar="LIST",
              help="Draw all figures, including heat maps and forgetting, in these formats: svg, pdf, png; repeatable."
              "  [default: only the figures in report.md, as svg]")
@click.option("--out", type=PATH, metavar="DIR",
              help="Folder to write the report to. Required with several run folders, which stay unchanged.  "
              "[default: DIR]")
@click.option("--baseline", metavar="METHOD", help="Method that the report compares all others with, by its name in "
              "the tables or its ID.  [default: sequential fine-tuning (naive)]")
@metric_option
@plugin_option
def command(directories: Sequence[Path], formats: Sequence[str], kinds: Sequence[str], out: Path | None,
            baseline: str | None, metric: str | None, plugins: Sequence[Path]) -> None:
    """Write the report of one or more run folders again, from their records.

    clbench trains nothing. If you name several folders, it writes one report for all of them. If two folders have
    different records of the same trial, clbench lists these trials and writes nothing.
    """
    from clbench import report
    from clbench.core.errors import SpecError, unknown
    from clbench.core.registry import discover
    from clbench.execution.run import FORMATS
    from clbench.report.formats.terminal import show
    from clbench.report.model import FILE_FORMATS
    from clbench.results import looks

    registry = discover(files=plugins)
    report_formats = [registry.report_format(name) for name in names_in(",".join(formats)) or FORMATS]
    file_formats = names_in(",".join(kinds))
    if unknown_formats := [name for name in file_formats if name not in FILE_FORMATS]:
        raise SpecError("\n".join(unknown("file format", name, FILE_FORMATS, "clbench report --help")
                                  for name in unknown_formats))
    folders = list({folder.resolve(): folder for folder in directories}.values())
    if out is None and len(folders) > 1:
        raise SpecError("a report of several run folders is not written into any of them: name its folder with --out "
                        "DIR")
    records = read_records(folders)
    labeled_report, folder = report.build(records, baseline, registry=registry, metric=metric), out or folders[0]
    needs_ids = any(info.ids for info in report_formats)
    id_report = (report.build(records, baseline, ids=True, registry=registry, metric=metric) if needs_ids
                 else labeled_report)
    if out is None:
        looks.note(folder, records, new=False)
    figure_paths = report.write_figures(labeled_report, folder, [f for f in FILE_FORMATS if f in file_formats])
    paths = [report.write(id_report if info.ids else labeled_report, folder, info) for info in report_formats]
    show(labeled_report)
    for path in paths:
        click.echo(f"report: {path}")
    for path in figure_paths:
        click.echo(f"figure: {path}")


def read_records(folders: Sequence[Path]) -> list[Record]:
    """Return the records of run folders, grouped by method.

    Print a warning for each file that is not a valid record, and a note for each record that is not used.

    Raises:
        StoreError: there are no records, or folders disagree on a trial.
    """
    from clbench.results import diff
    from clbench.results.diff import group_by_method

    merged = diff.merge_runs(folders, [*click.get_current_context().command_path.split(), diff.RUN])
    for problem in merged.problems:
        click.echo(f"Warning: {problem}", err=True)
    for note in merged.notes:
        click.echo(f"Note: {note}", err=True)
    return group_by_method(merged.records)
