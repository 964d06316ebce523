"""Options that several commands share, options made from `ExecutionSettings`, and task numbers, which count from 1."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from clbench.cli.completion import complete_names
from clbench.core.files import readable_name
from clbench.experiment.execution_settings import ExecutionSettings, flag, meaning

if TYPE_CHECKING:
    IntType = click.ParamType[int]
    IntListType = click.ParamType[list[int]]
else:  # not generic in click 8.2
    IntType = IntListType = click.ParamType


def typed_command() -> str:
    """Return the command that the user typed, as records store it."""
    return readable_name(shlex.join(["clbench", *sys.argv[1:]]))


def options_passed(context: click.Context) -> dict[str, str]:
    """Return the options and arguments on the command line as the user writes them, by parameter name."""
    return {p.name: p.opts[0] for p in context.command.params
            if p.name and context.get_parameter_source(p.name) is ParameterSource.COMMANDLINE}


def require_only(context: click.Context, allowed: Collection[str], needed: str) -> None:
    """Refuse options and arguments that have no effect because something else was left out.

    Args:
        context: the context of the command.
        allowed: the names of the parameters that have an effect.
        needed: what the others need, as the error says it.
    """
    for name, option in options_passed(context).items():
        if name not in allowed:
            raise click.UsageError(f"{option} needs {needed}")


class TaskNumber(IntType):
    """A task number as a user types it, from 1. The command gets its index, from 0."""

    name = "task"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the index of task `value`."""
        if isinstance(value, int):  # converted already
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is not the number of a task, such as 2", param, ctx)
        if int(value) == 0:
            self.fail("tasks are counted from 1 now, as tables count them: the first is 1", param, ctx)
        return int(value) - 1


class TaskNumbers(IntListType):
    """A list of task numbers separated by commas, as in 1,3."""

    name = "tasks"

    def convert(self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the indices of the tasks."""
        return [ONE.convert(part.strip(), param, ctx) for part in value.split(",")] if isinstance(value, str) else value


ONE, SEVERAL = TaskNumber(), TaskNumbers()


def numbers(tasks: Iterable[int], between: str = ", ") -> str:
    """Return the numbers of tasks as text, from their indices.

    >>> numbers([0, 2])
    '1, 3'
    """
    return between.join(str(task + 1) for task in tasks)


class UserPath(click.Path):
    """A path that a user types. Shells do not replace `~` in --out=~/runs, so clbench does."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path with the home folder in the place of `~`."""
        return super().convert(os.path.expanduser(value), param, ctx)


PATH, FILE = UserPath(path_type=Path), UserPath(path_type=Path, dir_okay=False)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def execution_option(name: str) -> Decorator:
    """Return the command-line option for a field of `ExecutionSettings`. Its default is None."""
    dashed = name.replace("_", "-")
    if ExecutionSettings.model_fields[name].annotation is bool:
        return click.option(f"--{dashed}/--no-{dashed}", default=None, help=meaning(name))
    if get_origin(ExecutionSettings.model_fields[name].annotation) is list:
        return click.option(f"--{dashed}", multiple=True, callback=join_lists, metavar=flag(name).metavar,
                            help=meaning(name))
    return click.option(f"--{dashed}", type=_parameter_type(name), metavar=flag(name).metavar, help=meaning(name))


def _parameter_type(name: str) -> click.ParamType[Any] | None:
    """Return the click type of a field of `ExecutionSettings`, or None for text."""
    field = ExecutionSettings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return click.Choice(get_args(field.annotation))
    types = get_args(field.annotation) or (field.annotation,)
    minimum = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    if Path in types:
        return PATH
    if float in types:
        return click.FloatRange(min=minimum)
    return click.IntRange(min=minimum) if int in types else None


def execution_options(without: Collection[str] = ()) -> Decorator:
    """Add options for the fields of `ExecutionSettings` to a command, except for some. `read_spec` takes the values."""
    return option_decorator([execution_option(name) for name in ExecutionSettings.model_fields if name not in without])


def option_decorator(options: Sequence[Decorator]) -> Decorator:
    """Return a decorator that adds options to a command, in this order."""
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def join_lists(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Join the lists of a repeated option into one. Return None if the option was not passed."""
    return ",".join(values) or None


def names_in(text: str | None) -> list[str]:
    """Return the distinct names in a list with commas; none if the option was not passed.

    >>> names_in("lora, ewc,,lora")
    ['lora', 'ewc']
    """
    from clbench.experiment.spec import split_names

    return list(dict.fromkeys(split_names(text or "")))


def device_option(default_text: str, **more: Any) -> Decorator:
    """Return the option `--device`; its help ends with a text about the default."""
    return click.option("--device", metavar="DEVICE", help="Device: auto (CUDA, or else the CPU), cpu, cuda, cuda:1 or "
                        f"mps.  [default: {default_text}]", **more)


def methods_option(text: str, **more: Any) -> Callable[..., Any]:
    """Return the option `--methods`. If it is passed several times, its lists are joined."""
    return click.option("--methods", multiple=True, callback=join_lists, metavar="LIST", help=text,
                        shell_complete=complete_names("method", "strategies", several=True), **more)


def model_option(text: str, **more: Any) -> Callable[..., Any]:
    """Return the option `--model`."""
    return click.option("--model", metavar="NAME", shell_complete=complete_names("model", "models"), help=text, **more)


def trial_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments RUN and [TRIAL]."""
    command = click.argument("trial", required=False, metavar="[TRIAL]")(command)
    return click.argument("run", type=PATH, metavar="RUN")(command)


plugin_option = click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Python file of a plugin to "
                             "use without installing it; repeatable.", type=PATH)


metric_option = click.option("--metric", metavar="NAME", help="Metric to rank and test methods by: nll or exact "
                             "for language models, rmse or r2 for regression.  [default: accuracy; nll for language "
                             "models; rmse for regression]")


def stale_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--rerun` and `--keep-stale`, as one argument `stale`: refuse, rerun or keep."""
    for name, value, text in (
        ("--keep-stale", "keep", "Keep stale results, whose code or data have changed since, and mark them in the "
         "table."),
        ("--rerun", "rerun", "Train trials with stale results again, diverged ones too: their code or data have "
                             "changed since. Without this option, clbench lists them and trains nothing."),
    ):
        command = click.option(name, "stale", flag_value=value, help=text)(command)
    return click.option("--refuse-stale", "stale", flag_value="refuse", default=True, hidden=True)(command)


def _shares(context: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    """Read shares of a phase's steps, such as 0.5,0.8."""
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0.5,0.8, got {value!r}") from None


RECIPE = (
    click.option("--epochs", type=int, help="Passes over each task's training samples.  [default: 10; 300 for "
                 "--model linear on arrays:FILE]"),
    click.option("--iterations", type=int, help="Optimizer steps per task, instead of epochs."),
    click.option("--batch-size", type=int, help="Number of new samples per step.  [default: 128]"),
    click.option("--optimizer", metavar="adam|adamw|sgd", help="Optimizer.  [default: adam]"),
    click.option("--lr", type=float, help="Learning rate.  [default: 0.001]"),
    click.option("--lr-per", type=int, metavar="N", help="Batch size that --lr is meant for; the rate is multiplied by "
                 "the batch size / N.  [default: the batch size]"),
    click.option("--head-lr", type=float, help="Learning rate of the heads.  [default: that of --lr]"),
    click.option("--momentum", type=float, help="Momentum of sgd.  [default: 0]"),
    click.option("--weight-decay", type=float, help="L2 penalty added to the gradient; with adamw, decoupled from it.  "
                 "[default: 0]"),
    click.option("--head-decay", metavar="all|learning", help="Rows of the heads that optimizer steps change: all, or "
                 "those that a gradient reaches.  [default: all]"),
    click.option("--schedule", metavar="constant|cosine|quarter-cosine|steps", help="Schedule of the learning rate "
                 "over each phase of a task.  [default: constant]"),
    click.option("--schedule-by", metavar="step|epoch", help="Change the rate after each step or each epoch.  "
                 "[default: step]"),
    click.option("--milestones", metavar="LIST", callback=_shares, help="Shares of a phase's steps at which the "
                 "learning rate falls (--schedule steps), such as 0.5,0.8."),
    click.option("--decay", type=float, help="Factor of the learning rate at each milestone.  [default: 0.1]"),
    click.option("--repeats", type=int, help="Number of consecutive steps on each batch.  [default: 1]"),
    click.option("--accumulate", type=int, metavar="N", help="Compute the gradients of each batch in N parts and add "
                 "them up, which needs less memory.  [default: 1]"),
    click.option("--group-by-length/--no-group-by-length", default=None, help="For language models: draw batches of "
                 "items of similar lengths, which need less padding.  [default: no]"),
    click.option("--warmup-ratio", type=float, help="Share of a phase's steps in which the learning rate rises to "
                 "its full value.  [default: 0]"),
    click.option("--max-grad-norm", type=float, help="Norm to which gradients are clipped.  [default: not clipped]"),
    click.option("--optimizer-state", metavar="reset|keep", help="Reset or keep the optimizer's moments when a new "
                 "task begins.  [default: reset]"),
    click.option("--precision", metavar="fp32|tf32|bf16", help="Numerical precision.  [default: fp32]"),
    device_option("auto"),
)


ARRIVAL = (
    click.option("--blur", type=float, metavar="SHARE", help="Share of each task's training samples that arrives "
                 "during the other tasks (docs/task-free-streams.md).  [default: 0]"),
    click.option("--repeat", type=float, metavar="P", help="Probability with which a class returns in each later "
                 "task.  [default: 0]"),
    click.option("--imbalance", type=float, metavar="RATIO", help="Ratio of the training samples that the most "
                 "frequent class keeps to those of the rarest (long tail).  [default: 1]"),
    click.option("--boundaries", metavar="given|hidden", help="Task boundaries: given, or hidden from methods, "
                 "which then get the stream as one task in one pass.  [default: given]"),
    click.option("--online/--no-online", default=None, help="Online learning: one pass, in batches of 10 unless you "
                 "give --batch-size."),
)


arrival_options = option_decorator(ARRIVAL)
recipe_options = option_decorator(RECIPE)  # and the device


def changed_recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a recipe, which default to the trial's values, and the device.

    The trial's recipe has no lr_per.
    """
    command = recipe_options(command)
    for option in vars(command)["__click_params__"][-len(RECIPE):]:
        if option.name not in ("device", "lr_per"):
            option.help = f"{option.help.partition('  [default:')[0]}  [default: the trial's]"
    return command
