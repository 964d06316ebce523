"""`clbench params`: count parameters, storage and FLOPs of methods without training, as text, markdown or JSON."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from tabulate import tabulate

from clbench.cli.common_options import FILE, methods_option, model_option, options_passed, plugin_option
from clbench.cli.help import Command
from clbench.core.options import format_value
from clbench.core.scenario import Scenario
from clbench.report.formats.markdown import escape
from clbench.report.formatting import NONE
from clbench.report.model import FigureData, FigurePoint

if TYPE_CHECKING:
    from clbench.accounting.count import Count
    from clbench.core.registry import Registry
    from clbench.experiment.trial import PlannedTrial


FIGURES = ("method", "parameters", "trainable", "bytes per task", "ratio to full")
MEANING = ("trainable: parameters that one task (of several the last) trains; bytes per task: what those take, 1 KB = "
           "1000 bytes; ratio to full: trainable parameters against full fine-tuning's.")
MEANING_OF_MORE = ("parameters, bytes kept: all that the method holds after the last task, its memory of samples "
                   "included; FLOPs: of predicting one sample then, a multiply-add as two.")
WIDTH = 100  # columns of paragraphs on the terminal
PREFIXES = ("", "K", "M", "G", "T", "P")
SMALLEST = 10  # factors from here on are written as whole numbers


def show(setting: Mapping[str, Any], counts: Sequence[Count], form: str) -> str:
    """Return counts as `text`, `md` or `json`. The first count is that of full fine-tuning.

    `setting` describes what was counted and becomes the heading. If it has a `model`, and not only one layer, bytes,
    FLOPs and growth are shown too.
    """
    if form == "json":
        return json.dumps({**setting, "methods": [as_json(count, counts[0]) for count in counts]}, indent=2)
    blocks = [_text(", ".join(f"{key} {_format_shape(value)}" for key, value in setting.items()), form)]
    headers, meaning, growths = list(FIGURES), MEANING, []
    rows = [[c.method, _last_or_none(f"{n:,}" for n in c.parameters), _last_or_none(f"{n:,}" for n in c.trainable),
             _last_or_none(map(size, c.trainable_bytes)), ratio(c, counts[0])] for c in counts]
    if "model" in setting:
        headers, meaning = [*FIGURES, "bytes kept", "FLOPs"], f"{MEANING} {MEANING_OF_MORE}"
        for row, c in zip(rows, counts, strict=True):
            row += [_last_or_none(map(size, c.bytes)), NONE if c.flops is None else format_scaled(c.flops)]
        growths = ["Parameters kept after each task:", _growth([[f"{n:,}" for n in c.parameters] for c in counts],
                                                               counts, form),
                   "Bytes kept after each task:", _growth([list(map(size, c.bytes)) for c in counts], counts, form)]
    notes = "\n".join(chain.from_iterable(
        [f"- {_text(f'{c.method}: {note}', form)}" for note in c.notes] for c in counts))
    return "\n\n".join(filter(None, [*blocks, table(headers, rows, form), _text(meaning, form), *growths, notes]))


def as_json(count: Count, full: Count) -> dict[str, Any]:
    """Return a count as plain values."""
    return {"method": count.method, "trainable": count.trainable, "trainable_bytes": count.trainable_bytes,
            "ratio_to_full": factor(count, full), "parameters": count.parameters, "bytes": count.bytes,
            "kept": [asdict(footprint) for footprint in count.kept], "flops": count.flops, "note": count.note,
            "remarks": count.remarks}


def factor(count: Count, full: Count) -> float | None:
    """Return how many times fewer parameters the last task trains than full fine-tuning does; None if it trains none.

    A value below 1 means that it trains more.
    """
    if not count.trainable or not full.trainable or not count.trainable[-1]:
        return None
    return full.trainable[-1] / count.trainable[-1]


def ratio(count: Count, full: Count) -> str:
    """Return the factor as `31x fewer`, `2.5x more` or `1x`."""
    reduction = factor(count, full)
    if reduction is None:
        return NONE
    if reduction == 1:
        return "1x"
    times = max(reduction, 1 / reduction)
    return (f"{times:,.0f}x" if times >= SMALLEST else f"{times:.2g}x") + (" fewer" if reduction > 1 else " more")


def size(count: float) -> str:
    """Return bytes with three digits at most.

    >>> size(32_000), size(4_000_000), size(44_695_848), size(0)
    ('32 KB', '4 MB', '44.7 MB', '0 B')
    """
    return format_scaled(count) + "B"


def format_scaled(value: float) -> str:
    """Return a number with three digits and a decimal prefix, to which the unit can be appended."""
    power = 0
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}"


def growth_of_bytes(counts: Sequence[Count], subject: str) -> FigureData:
    """Return the figure of the bytes stored after each task. The first count, of full fine-tuning, is the reference."""
    points = tuple(FigurePoint(c.method, c.method.partition(":")[0], c is counts[0], False, None, None, None,
                               tuple(map(float, c.bytes))) for c in counts if c.bytes)
    return FigureData("growth", "growth", "Bytes kept after each task", subject, "", "", points, axis="bytes kept")


def _growth(columns: Sequence[Sequence[str]], counts: Sequence[Count], form: str) -> str:
    """Return a table with a row for each task and a column for each method."""
    tasks = max(map(len, columns))
    rows = [[str(t + 1), *(column[t] if t < len(column) else NONE for column in columns)] for t in range(tasks)]
    return table(["tasks", *(c.method for c in counts)], rows, form)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    """Return a table for the terminal or in markdown; the first column is text, the others numbers."""
    if form == "md":
        headers, rows = list(map(escape, headers)), [list(map(escape, row)) for row in rows]
    return tabulate(rows, headers, tablefmt="pipe" if form == "md" else "simple", disable_numparse=True,
                    colalign=("left", *["right"] * (len(headers) - 1)))


def _text(text: str, form: str) -> str:
    """Return a paragraph: escaped in markdown, wrapped on the terminal."""
    return escape(text) if form == "md" else textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _last_or_none(texts: Iterable[str]) -> str:
    return (list(texts) or [NONE])[-1]


def _format_shape(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else format_value(value)


FULL = "full fine-tuning"
FOR_LAYERS = {"layer", "rank", "form", "plugins"}  # options that go with --layer; all but the first two go with --model


def dimensions(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read numbers with an x between them."""
    if value is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", value):
        raise click.BadParameter(f"expected positive numbers with x between them, such as {parameter.metavar}, got "
                                 f"{value!r}")
    return tuple(map(int, value.split("x")))


def ranks(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Read positive numbers with commas between them. Duplicates are dropped."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", value):
        raise click.BadParameter(f"expected ranks such as 4,8,16, got {value!r}")
    return list(dict.fromkeys(map(int, value.split(","))))


def figure_file(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """Reject files other than .png and .svg."""
    if value is not None and value.suffix not in (".png", ".svg"):
        raise click.BadParameter(f"expected a file that ends in .png or .svg, got {str(value)!r}")
    return value


EXAMPLES = (
    ("clbench params --layer 768x768 --rank 4,8,16", "counts for one layer and three ranks of lora"),
    ("clbench params --model resnet18 --methods lora:rank=8,ewc,pnn --tasks 20",
     "counts for a whole network and 20 tasks"),
)


@click.command("params", cls=Command, examples=EXAMPLES)
@click.option("--layer", callback=dimensions, metavar="OUTxIN", help="Layer to count for, without bias: OUTxIN "
              "(Linear) or OUTxINxHxW (Conv2d).")
@click.option("--rank", callback=ranks, default="4,8,16", metavar="LIST", show_default=True,
              help="Ranks of lora, with --layer.")
@model_option("Model to count for, as in resnet18:width=20 (clbench models).")
@methods_option("Methods to count, with --model, as in lora:rank=4,ewc (clbench methods); repeatable.",
                default=("lora,ewc,er,pnn,shared-private",), show_default=True)
@click.option("--set", "options", multiple=True, metavar="METHOD.OPTION=VALUE",
              help="Option of every method of that name; repeatable.")
@click.option("--tasks", type=click.IntRange(min=1), default=10, show_default=True, help="Number of tasks.")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes of all tasks.  [default: 10 per task]")
@click.option("--input-shape", callback=dimensions, default="3x32x32", metavar="CxHxW", show_default=True,
              help="Shape of a sample: CxHxW of an image, or the number of tokens of a text. The model's option size "
              "resizes images.")
@click.option("--samples", type=click.IntRange(min=1), default=500, show_default=True,
              help="Number of training samples per task, from which methods fill their replay buffer.")
@click.option("--scenario", type=click.Choice(get_args(Scenario)), default="task", show_default=True,
              help="Scenario. Only task gives task IDs at test time.")
@click.option("--pretrained", is_flag=True, help="Count for a model with pretrained weights (clbench run --weights).")
@plugin_option
@click.option("--plot", callback=figure_file, type=FILE, metavar="FILE",
              help="File in which to plot the storage after each task (.png or .svg).")
@click.option("--format", "form", type=click.Choice(["text", "md", "json"]), default="text", show_default=True,
              help="Format of the output.")
@click.pass_context
def command(context: click.Context, /, layer: tuple[int, ...] | None, rank: list[int], form: str,
            **whole: Any) -> None:
    """Count parameters, storage and FLOPs of methods, on one layer (--layer) or a whole network (--model).

    clbench trains nothing: it runs the methods' code on tensors without values. A run records the same numbers.
    """
    flags = options_passed(context)
    if ("layer" in flags) == ("model" in flags):
        raise click.UsageError("give --layer OUTxIN or --model NAME, one of them")
    if layer is None and "rank" in flags:
        raise click.UsageError("--rank goes with --layer; with --model give --methods lora:rank=4,lora:rank=8")
    if layer is not None and (misplaced_flags := [opt for name, opt in flags.items() if name not in FOR_LAYERS]):
        raise click.UsageError(f"{misplaced_flags[0]} goes with --model, not with --layer")
    if whole["plot"] is not None and whole["tasks"] == 1:
        raise click.UsageError("--plot shows growth over tasks; give --tasks 2 or more")
    if layer is not None:
        _layer(layer, rank, form, whole["plugins"])
    else:
        _network(form=form, **whole)


def _layer(shape: tuple[int, ...], ranks: Sequence[int], form: str, plugins: Sequence[Path]) -> None:
    from clbench.accounting.count import count_layer
    from clbench.core.registry import discover

    registry = discover(files=plugins)
    methods_by_label = {FULL: registry.baseline.name, **_layer_rows(registry, ranks)}
    planned = _plan(registry, list(methods_by_label.values()))
    methods = [(label, planned_trial.trial.method)
               for label, planned_trial in zip(methods_by_label, planned, strict=True)]
    click.echo(show({"layer": list(shape)}, count_layer(shape, methods, registry), form))


def _layer_rows(registry: Registry, ranks: Sequence[int]) -> dict[str, str]:
    """Return the methods that are counted on a layer, as `--methods` takes them, by the labels of their rows."""
    rows: dict[str, str] = {}
    for info in registry.strategies.values():
        for label, options in info.layer_rows:
            method = f"{info.name}:{options}".rstrip(":")
            for rank in map(str, ranks):
                rows[label.replace("{rank}", rank)] = method.replace("{rank}", rank)
    return rows


def _network(model: str, methods: str, options: tuple[str, ...], tasks: int, classes: int | None,
             input_shape: tuple[int, ...], samples: int, scenario: str, pretrained: bool, plugins: tuple[Path, ...],
             plot: Path | None, form: str) -> None:
    from clbench.accounting.count import count
    from clbench.accounting.shapes import stream_of_shapes
    from clbench.core.registry import discover
    from clbench.report.writing import write_figure
    from clbench.training.building import as_inputs

    registry = discover(files=plugins)
    full, *planned = [*_plan(registry, [registry.baseline.name], model, scenario, pretrained=pretrained),
                      *_plan(registry, methods, model, scenario, options, pretrained, input_shape[-1])]
    is_text = registry.model(full.trial.model.name).text
    if is_text and len(input_shape) > 1:
        raise click.UsageError(f"{full.trial.model.name} takes texts; give their tokens, --input-shape 128")
    stream = as_inputs(stream_of_shapes(tasks, classes or 10 * tasks, input_shape, full.trial.scenario, samples,
                                        is_text),
                       full.trial.model.options.get("size"), registry.model(full.trial.model.name).channels, None,
                       normalize=False)
    counts = [count(planned_trial, stream, registry, pretrained)
              for planned_trial in (replace(full, label=FULL), *planned)]
    if plot is not None:
        write_figure(growth_of_bytes(counts, f"{full.trial.model}, scenario {scenario}"), plot,
                     "svg" if plot.suffix == ".svg" else "png")
    setting = {"model": str(full.trial.model), "tasks": tasks, "outputs": stream.classes,
               "inputs": list(stream.input_shape), "samples": samples, "scenario": scenario, "pretrained": pretrained}
    click.echo(show(setting, counts, form))


def _plan(registry: Registry, methods: str | list[str], model: str = "mlp", scenario: str = "task",
          options: Sequence[str] = (), pretrained: bool | None = None, side: int | None = None) -> list[PlannedTrial]:
    """Return the methods as `clbench run` reads them. The choice of the benchmark does not matter."""
    from clbench.experiment.overrides import read_spec
    from clbench.experiment.plan import plan

    return plan(read_spec(None, {}, {"methods": methods, "model": model, "scenario": scenario, "seeds": 1}, options),
                registry, pretrained, side)
