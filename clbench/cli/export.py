"""`clbench export`: a trial's model as files to take home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clbench.cli.common_options import ONE, plugin_option, trial_arguments
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.execution.exporting import Format

EXAMPLES = (
    ("clbench export runs/mine er/0 --to er", "its weights, and what they are"),
    ("clbench export runs/mine er/0 --to er --format torch-export", "a program that torch alone runs"),
)


@click.command("export", cls=Command, examples=EXAMPLES)
@trial_arguments
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write to.")
@click.option("--format", "form", type=click.Choice(["safetensors", "torch-export", "onnx"]), default="safetensors",
              show_default=True, help="Weights, or a program from raw samples to logits (.pt2, .onnx).")
@click.option("--task", type=ONE, metavar="N", help="Task to predict for, from 1: the network of a method that has "
              "one for each (lora, independent), or a program for it.")
@plugin_option
def command(run: Path, trial: str | None, to: Path, form: Format, task: int | None, plugins: tuple[Path, ...]) -> None:
    """Write the final model of TRIAL (label/seed, or the beginning of a key) of the run folder RUN.

    The run must have used --keep models. model.json describes inputs, preprocessing, class names and accuracy. See
    docs/save-models.md.
    """
    from clbench.execution.exporting import export

    for path in export(run, trial, to, form, task, plugins):
        click.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")
