"""`clbench new-plugin`: begin a method of one's own."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click


@click.command("new-plugin", short_help="Begin a method of your own, as a distribution to install.")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to.  [default: clbench-NAME]")
def command(name: str, out: Path | None) -> None:
    """Write a small distribution with a working method, its test and its entry point."""
    from clbench.plugins import discover
    from clbench.scaffold import write

    written = write(name, out, discover())
    for path in written:
        click.echo(path)
    method = name.removeprefix("clbench-")
    folder = os.path.join(os.curdir, written[0].parent)  # pip takes a bare name for a package of the index
    click.echo(f"\nnext:\n    pip install -e {shlex.quote(folder)}\n    clbench check {method}\n"
               f"    clbench run --methods {method},naive,ewc\nthen make {written[3]} your own")
