"""The options of the commands that run trials, by which they are told where data are and how to share the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

OPTIONS = (
    click.option("--data", type=click.Path(path_type=Path), metavar="DIR",
                 help="Where data sets are kept.  [default: CLBENCH_DATA, or the user's cache folder]"),
    click.option("--workers", type=click.IntRange(min=0), help="Processes; 0 runs in this one.  [default: one per "
                 "core, one on an accelerator]"),
    click.option("--threads", type=click.IntRange(min=1), help="torch threads per worker.  [default: cores / workers]"),
    click.option("--stack", type=click.IntRange(min=1), help="Trials of a method (seeds, and values of an option such "
                 "as ewc.strength) that train as one.  [default: 1 on a CPU, as many as fit on an accelerator]"),
)


def execution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
