"""`clbench lora`: what runs of lora and its references say of the low-rank hypothesis."""

from __future__ import annotations

from pathlib import Path

import click

from clbench.cli.params import figure_file


@click.group("lora", short_help="Measure how low the rank of fine-tuning is.")
def command() -> None:
    """Look into runs of lora and of its references."""


@command.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--plot", callback=figure_file, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Draw energy and accuracy against rank (.png or .svg).")
@click.option("--format", "form", type=click.Choice(["text", "md", "json"]), default="text", show_default=True,
              help="Of what is printed.")
def spectrum(run: Path, plot: Path | None, form: str) -> None:
    r"""Show the rank of what full fine-tuning changes, and the accuracy of lora at each rank.

    RUN is a run folder with trials of independent (full fine-tuning per task), and of lora at some ranks:

    \b
    clbench run --methods independent,frozen,lora --set lora.rank=1,4,16 --out RUN
    """
    from clbench_lora import spectrum, spectrum_view

    found = spectrum.spectra(run)
    if plot is not None:
        spectrum_view.draw(found, plot)
    click.echo(spectrum_view.show(found, form))
