"""`clbench report`: render a run folder again from its records, without torch."""

from __future__ import annotations

from pathlib import Path

import click

from clbench.cli.plugin import plugin_option


@click.command("report", short_help="Render a report again from its records.")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--format", "formats", multiple=True, metavar="NAME", help="A format; repeatable.  [default: md, html]")
@plugin_option
def command(directory: Path, formats: tuple[str, ...], plugins: tuple[Path, ...]) -> None:
    """Render the report of a run folder again, from its records alone."""
    from rich.console import Console

    from clbench import report
    from clbench.errors import StoreError
    from clbench.experiment import FORMATS, by_method
    from clbench.plugins import discover
    from clbench.report.terminal import show
    from clbench.store import Store

    registry = discover(files=plugins)
    wanted = [registry.report_format(name) for name in formats or FORMATS]
    records, problems = Store(directory).read()
    for problem in problems:
        click.echo(f"Warning: {problem}", err=True)
    if not records:
        raise StoreError(f"no records in {directory / 'records'}; clbench run --out {directory} makes some")
    whole = report.build(by_method(records))
    figures = report.write_figures(whole, directory)
    paths = [report.write(whole, directory, info) for info in wanted]
    show(whole, Console())
    for path in paths:
        click.echo(f"report: {path}")
    for path in figures:
        click.echo(f"figure: {path}")
