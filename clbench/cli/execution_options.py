"""Options made from `ExecutionSettings`: how trials are run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from clbench.experiment.execution_settings import ExecutionSettings, flag, meaning

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def execution_option(name: str) -> Decorator:
    """Return the command-line option for a field of `ExecutionSettings`. Its default is None."""
    dashed = name.replace("_", "-")
    if ExecutionSettings.model_fields[name].annotation is bool:
        return click.option(f"--{dashed}/--no-{dashed}", default=None, help=meaning(name))
    return click.option(f"--{dashed}", type=_parameter_type(name), metavar=flag(name).metavar, help=meaning(name))


def _parameter_type(name: str) -> click.ParamType[Any] | None:
    """Return the click type of a field of `ExecutionSettings`, or None for text."""
    field = ExecutionSettings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return click.Choice(get_args(field.annotation))
    kinds = get_args(field.annotation) or (field.annotation,)
    least = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    if Path in kinds:
        return click.Path(path_type=Path)
    if float in kinds:
        return click.FloatRange(min=least)
    return click.IntRange(min=least) if int in kinds else None


def execution_options(without: Collection[str] = ()) -> Decorator:
    """Add options for the fields of `ExecutionSettings` to a command, except for some. `read_spec` takes the values."""
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(list(ExecutionSettings.model_fields)):
            if name not in without:
                command = execution_option(name)(command)
        return command

    return decorate
