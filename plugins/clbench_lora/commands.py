"""The commands `clbench adapters`, for adapters that trials have saved, and `clbench lora`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import FILE, ONE, PATH, SEVERAL, numbers, plugin_option, trial_arguments
from clbench.cli.help import Group
from clbench.cli.params import figure_file

if TYPE_CHECKING:
    from clbench_lora.peft_format import Adapter

EXAMPLES = (
    ("clbench adapters list runs/mine", "lists the trials that saved adapters"),
    ("clbench adapters show runs/mine lora/0 --task 2", "shows the rank and size of each layer's adapter"),
    ("clbench adapters export runs/mine lora/0 --task 2 --to adapter2", "exports an adapter and its backbone for PEFT"),
)
task = click.option("--task", type=ONE, required=True, metavar="T", help="Number of the task, from 1.")
data = click.option("--data", type=PATH, metavar="DIR", help="Folder of data sets.  [default: CLBENCH_DATA, or "
                    "the user's cache folder]")
device = click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="Device: auto (CUDA, or "
                      "else the CPU), cpu, cuda, cuda:1 or mps.")


def to(what: str, metavar: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--to`, the path of a command's output."""
    return click.option("--to", "to", type=PATH, required=True, metavar=metavar, help=what)


def outputs(adapter: Adapter) -> str:
    """Return the outputs of an adapter's classes as text, with the classes' names if they have any."""
    names = adapter.info.class_names
    return ", ".join(f"{output} {name}" for output, name in zip(adapter.info.classes, names, strict=True)) if names \
        else ", ".join(map(str, adapter.info.classes))


def floats(text: str) -> list[float]:
    """Parse a list such as 0.5,0.5."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5") from None


@click.group("adapters", cls=Group, examples=EXAMPLES,
             short_help="Show, export, merge, combine, remove and add the adapters of a run.")
def adapters_group() -> None:
    """Manage the adapters that a run saved.

    lora saves an adapter after each task, except for numeric targets. seq-lora does so on language models, unless
    merge = true. RUN is the run folder. TRIAL is label/seed, as in lora:rank=8/0, or label/scenario/seed, as in
    lora/class/0, or the first 4 or more characters of a key. You can omit it if only one trial saved adapters.
    """


@adapters_group.command("list")
@click.argument("run", type=PATH, metavar="RUN")
def list_(run: Path) -> None:
    """List the trials of a run folder that saved adapters.

    Tasks count from 1, and their folders from 0: the adapter of task 1 is in the folder task0.
    """
    from tabulate import tabulate

    from clbench.core.artifacts import task_folder
    from clbench.core.errors import StoreError
    from clbench.report.formatting import number
    from clbench_lora.adapters import trials_with_adapters

    if not run.is_dir():
        raise StoreError(f"there is no folder {run}: check the path")
    rows = [[k.record.key, k.name, k.record.trial.scenario, k.record.status, numbers(k.tasks, ","),
             ",".join(task_folder(k.folder, task).name for task in k.tasks), number(k.size, "bytes")]
            for k in trials_with_adapters(run)]
    if not rows:
        click.echo(f"no adapters in {run}")
        return
    headers = ["key", "trial", "scenario", "state", "tasks", "folders of the tasks", "size"]
    click.echo(tabulate(rows, headers=headers, disable_numparse=True))
    click.echo(f"\nThe folders are in {run / 'artifacts'}/KEY. To copy the adapter of a task: "
               f"clbench adapters export {run} KEY --task N --to DIR")


@adapters_group.command()
@trial_arguments
@click.option("--task", type=ONE, metavar="T", help="Number of the task, from 1.  [default: all tasks]")
@plugin_option
def show(run: Path, trial: str | None, task: int | None, plugins: tuple[Path, ...]) -> None:
    """Show the rank, size and effect of adapters, by layer.

    The last column shows how much an adapter changes the weights of a layer: the Frobenius norm of the change, divided
    by the norm of the weights.
    """
    from tabulate import tabulate

    from clbench.report.formatting import number
    from clbench_lora.adapters import find, layer_summaries
    from clbench_lora.card import describe_learned_tasks

    source = find(run, trial, plugins)
    base = source.base()
    for task_number in source.tasks if task is None else [task]:
        adapter = source.adapter(task_number)
        layers = layer_summaries(adapter, base)
        rows = [[f.name, f.rank, f"{f.alpha:g}", number(f.parameters, "count"), number(f.bytes, "bytes"),
                 f"{f.change:.4f}"] for f in layers]
        rows.append(["all", "", "", number(sum(f.parameters for f in layers), "count"),
                     number(sum(f.bytes for f in layers), "bytes"), ""])
        origin_text = f", task {origin.task + 1} of {origin.benchmark}" if (origin := adapter.info.origin) else ""
        names = source.stream.task_names
        content = f"classes {outputs(adapter)}" if adapter.has_head else \
            names[task_number] if names else "a language model"
        if source.is_shared and task_number:
            content = f"the last is {content}"
        click.echo(f"{describe_learned_tasks(source, task_number)}{origin_text}: {content}")
        click.echo(tabulate(rows, headers=["layer", "rank", "alpha", "parameters", "size", "|change| / |W|"],
                            disable_numparse=True, colalign=("left", *["right"] * 5)) + "\n")


@adapters_group.command()
@trial_arguments
@task
@to("Empty or new folder to write to.", "DIR")
@plugin_option
def export(run: Path, trial: str | None, task: int, to: Path, plugins: tuple[Path, ...]) -> None:
    """Export a task's adapter in PEFT's format.

    clbench also writes a model card (README.md) and the backbone. It does not write the backbone of a language model if
    the model's own folder or repository has it.
    """
    from clbench_lora import adapters

    adapters.export(adapters.find(run, trial, plugins), task, to)
    click.echo(f"adapter: {to}")


@adapters_group.command()
@trial_arguments
@task
@to("File to write the weights to.", "FILE.safetensors")
@plugin_option
def merge(run: Path, trial: str | None, task: int, to: Path, plugins: tuple[Path, ...]) -> None:
    """Merge a task's adapter into the backbone of a classifier.

    clbench writes the weights of the resulting model, which has the head of the task. The model needs no adapter, so
    its inference costs nothing extra.
    """
    from clbench_lora import adapters

    adapters.merge(adapters.find(run, trial, plugins), task, to)
    click.echo(f"weights: {to}")


@adapters_group.command()
@trial_arguments
@task
@plugin_option
def remove(run: Path, trial: str | None, task: int, plugins: tuple[Path, ...]) -> None:
    """Delete a task's adapter.

    The outputs of the other tasks stay the same, bit for bit.
    """
    from clbench_lora import adapters

    source = adapters.find(run, trial, plugins)
    adapters.remove(source, task)
    click.echo(f"removed task {task + 1}; left: {numbers(source.tasks) or '(none)'}")


@adapters_group.command()
@trial_arguments
@task
@click.option("--benchmark", metavar="NAME", help="Benchmark that has the task, as in split-fashion-mnist.  "
              "[default: the trial's]")
@data
@device
@plugin_option
def add(run: Path, trial: str | None, task: int, benchmark: str | None, data: Path | None, device: str,
        plugins: tuple[Path, ...]) -> None:
    """Train an adapter of a classifier for one more task.

    The backbone and the other adapters stay the same. You can also train a removed task again.
    """
    from clbench.experiment.plan import resolved_benchmark
    from clbench_lora.adapters import find
    from clbench_lora.evaluate import add as train

    source = find(run, trial, plugins)
    other_benchmark = resolved_benchmark(benchmark, source.registry) if benchmark else None
    number = train(source, task, other_benchmark, data, device)
    click.echo(f"added task {number + 1}")


@adapters_group.command("eval")
@trial_arguments
@click.option("--tasks", type=SEVERAL, metavar="LIST", help="Tasks whose adapters to test, as in 1,3.  [default: all]")
@data
@device
@plugin_option
def evaluate(run: Path, trial: str | None, tasks: list[int] | None, data: Path | None, device: str,
             plugins: tuple[Path, ...]) -> None:
    """Measure the accuracy of adapters of a classifier on their own tasks.

    If the scenario gives no task IDs, clbench infers the task among the chosen ones. If all tasks share one test set,
    each accuracy is that on the whole set, in which samples of classes that are not chosen count as wrong.
    """
    from tabulate import tabulate

    from clbench_lora.adapters import find
    from clbench_lora.evaluate import evaluate_tasks

    accuracy = evaluate_tasks(find(run, trial, plugins), tasks, data, device)
    rows = [[str(n + 1), f"{100 * a:.2f}"] for n, a in accuracy.items()]
    if accuracy:
        rows.append(["mean", f"{100 * sum(accuracy.values()) / len(accuracy):.2f}"])
    click.echo(tabulate(rows, headers=["task", "accuracy (%)"], disable_numparse=True, colalign=("left", "right")))


@adapters_group.command()
@trial_arguments
@click.option("--tasks", type=SEVERAL, required=True, metavar="LIST", help="Tasks whose adapters to combine, as "
              "in 1,2.")
@click.option("--weights", type=floats, required=True, metavar="LIST", help="Weight of each adapter, as in 0.5,0.5.")
@to("Empty or new folder to write to.", "DIR")
@plugin_option
def combine(run: Path, trial: str | None, tasks: list[int], weights: list[float], to: Path,
            plugins: tuple[Path, ...]) -> None:
    """Combine adapters into one, as their weighted sum.

    The sum is exact, so its rank is the sum of their ranks. In the head, each class has the row of its own task. If
    several tasks have a class, its row is the weighted mean of their rows.
    """
    from clbench_lora import adapters

    mixture = adapters.combine(adapters.find(run, trial, plugins), tasks, weights, to)
    ranks = sorted({mixture.rank(layer) for layer in mixture.layers})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    click.echo(f"adapter: {to} ({rank}{f', classes {outputs(mixture)}' if mixture.has_head else ''})")


@click.group("lora", cls=Group, short_help="Measure the rank of the weight changes by fine-tuning.")
def lora_group() -> None:
    """Analyze runs of lora and of full fine-tuning."""


@lora_group.command(examples=(
    ("clbench run --methods independent,frozen,lora --set lora.rank=1,4,16 --out runs/ranks",
     "trains the methods to measure"),
    ("clbench lora spectrum runs/ranks --plot spectrum.svg", "shows the ranks and draws a figure"),
))
@click.argument("run", type=PATH, metavar="RUN")
@click.option("--plot", callback=figure_file, type=FILE, metavar="FILE",
              help="File in which to plot energy and accuracy against the rank (.png or .svg).")
@click.option("--format", "form", type=click.Choice(["text", "md", "json"]), default="text", show_default=True,
              help="Format of the output.")
@plugin_option
def spectrum(run: Path, plot: Path | None, form: str, plugins: tuple[Path, ...]) -> None:
    """Show the rank of the weight changes by full fine-tuning.

    RUN is a run folder with trials of independent (full fine-tuning, one model per task) and of lora at some ranks.
    clbench also shows the accuracy of lora at each of these ranks.
    """
    from clbench_lora import spectrum, spectrum_view

    spectra = spectrum.spectra(run, plugins)
    if plot is not None:
        spectrum_view.draw(spectra, plot)
    click.echo(spectrum_view.show(spectra, form))
