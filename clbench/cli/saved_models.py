"""`clbench continue` and `clbench export`: train a saved model on new tasks, or export it to files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import (
    ONE,
    PATH,
    changed_recipe_options,
    execution_option,
    plugin_option,
    trial_arguments,
    typed_command,
)
from clbench.cli.completion import complete_names
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.execution.exporting import Format
    from clbench.execution.joining import Classes

CONTINUE_EXAMPLES = (
    ("clbench run --methods er,ewc --keep state", "saves the state that continuing needs"),
    ("clbench continue runs/split-mnist-5k er/0 --benchmark split-fashion-mnist",
     "trains five more tasks, with new outputs"),
    ("clbench continue runs/split-mnist-5k er/0 --benchmark split-mnist --same-classes --epochs 1",
     "trains one epoch on more samples of the old classes"),
)


COMMON = ("benchmark", "out", "classes", "epochs", "iterations", "lr", "batch_size", "device", "data", "plugins")


@click.command("continue", cls=Command, examples=CONTINUE_EXAMPLES, common=COMMON)
@trial_arguments
@click.option("--benchmark", required=True, metavar="NAME", shell_complete=complete_names("benchmark", "benchmarks"),
              help="Benchmark of the new tasks, as in split-mnist:tasks=2.")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder for the new record and model.  "
              "[default: RUN]")
@click.option("--same-classes", "classes", flag_value="same", help="Treat classes with the names of old classes as "
              "the same classes, whose samples train the old outputs.")
@click.option("--new-classes", "classes", flag_value="new", help="Treat classes with the names of old classes as "
              "different classes, which get new outputs.")
@changed_recipe_options
@execution_option("data")
@plugin_option
def continue_(run: Path, trial: str | None, benchmark: str, out: Path | None, classes: Classes | None,
            device: str | None, data: Path | None, plugins: tuple[Path, ...], **flags: Any) -> int:
    """Continue a finished trial on the tasks of another benchmark.

    RUN is the run folder. TRIAL is label/seed, as in er/0, or label/scenario/seed, as in er/class/0, or the first 4 or
    more characters of a key. You can omit it if there is only one finished trial. The run must have used --keep state.

    The method keeps its training configuration, unless you change it here. It has no samples of the old tasks except
    those that it stores. In scenarios task and class, the model gets outputs for the new classes. clbench writes a new
    record with the accuracy on the new and the old tasks. See docs/save-models.md.
    """
    from clbench.core.registry import discover
    from clbench.data.contents import check_data
    from clbench.experiment.execution_settings import ExecutionSettings
    from clbench.experiment.plan import resolved_benchmark
    from clbench.results.store import Store

    registry = discover(files=plugins)
    new_benchmark = resolved_benchmark(benchmark, registry)
    settings = ExecutionSettings(data=data)
    check_data(new_benchmark, settings.data_dir, registry)
    from clbench.execution.continuing import continue_trial

    record = continue_trial(run, trial, new_benchmark, settings, device or "auto", out,
                            typed_command(), registry,
                            {name: value for name, value in flags.items() if value is not None}, classes)
    for note in record.notes:
        click.echo(note)
    if record.status == "done":
        click.echo(f"new tasks: {format_accuracies(record.R[-1])}")
        if record.earlier is not None:
            before, after = record.earlier.before, record.earlier.after[-1]
            click.echo(f"old tasks: {format_accuracies(after)}; before they were {format_accuracies(before)}")
    else:
        click.echo(f"{record.status}: {record.failure.message if record.failure else ''}", err=True)
    folder = out or run
    export = f" (clbench export {shlex.quote(str(folder))} {record.key[:6]} --to DIR)" * (record.status == "done")
    click.echo(f"record: {Store(folder).path(record.key)}{export}")
    return int(record.status != "done")


def format_accuracies(row: list[float]) -> str:
    """Return the mean of accuracies and each accuracy, in percent."""
    return f"{100 * sum(row) / len(row):.1f} % ({', '.join(f'{100 * a:.1f}' for a in row)})"


EXPORT_EXAMPLES = (
    ("clbench export runs/mine er/0 --to er", "writes the weights and their description"),
    ("clbench export runs/mine er/0 --to er --format torch-export", "writes a program that needs only torch"),
)


@click.command("export", cls=Command, examples=EXPORT_EXAMPLES)
@trial_arguments
@click.option("--to", required=True, type=PATH, metavar="DIR", help="Folder to write to.")
@click.option("--format", "form", type=click.Choice(["safetensors", "torch-export", "onnx"]), default="safetensors",
              show_default=True, help="Format: weights (safetensors), or a program that computes logits from raw "
              "samples (torch-export, onnx).")
@click.option("--task", type=ONE, metavar="N", help="Task to export the model for, counted from 1. In scenario task, "
              "programs of methods with parts for each task (lora, independent) need it.")
@plugin_option
def export(run: Path, trial: str | None, to: Path, form: Format, task: int | None, plugins: tuple[Path, ...]) -> None:
    """Export the final model of a trial as weights or as a program.

    RUN is the run folder. TRIAL is label/seed, as in er/0, or label/scenario/seed, as in er/class/0, or the first 4 or
    more characters of a key. You can omit it if there is only one finished trial. The run must have used --keep models
    or --keep state; lora and independent need neither with --task. clbench also writes model.json, which describes the
    inputs, preprocessing, class names and accuracy. See docs/save-models.md.
    """
    from clbench.execution import exporting

    for path in exporting.export(run, trial, to, form, task, plugins):
        click.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")
