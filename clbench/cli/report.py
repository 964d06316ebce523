"""`clbench report`: render a run folder again from its records, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from clbench.records import Record


@click.command("report", short_help="Render a report again from its records.")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--format", "formats", multiple=True, metavar="NAME", help="A format; repeatable.  [default: md]")
def command(directory: Path, formats: tuple[str, ...]) -> None:
    """Render the report of a run folder again, from its records alone."""
    from rich.console import Console

    from clbench import report
    from clbench.plugins import discover
    from clbench.report.terminal import show

    registry = discover()
    wanted = [registry.report_format(name) for name in formats or ("md",)]
    whole = report.build(read(directory))
    figures = report.write_figures(whole, directory)
    paths = [report.write(whole, directory, info) for info in wanted]
    show(whole, Console())
    for path in paths:
        click.echo(f"report: {path}")
    for path in figures:
        click.echo(f"figure: {path}")


def read(directory: Path) -> list[Record]:
    """Return the records of a run folder, methods together; files that are none are told of and left alone.

    Raises:
        StoreError: there are no records.
    """
    from clbench.errors import StoreError
    from clbench.experiment import by_method
    from clbench.store import Store

    records, problems = Store(directory).read()
    for problem in problems:
        click.echo(f"Warning: {problem}", err=True)
    if not records:
        raise StoreError(f"no records in {directory / 'records'}; clbench run --out {directory} makes some")
    return by_method(records)
