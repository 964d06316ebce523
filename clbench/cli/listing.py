"""What the list commands share: everything that is installed of one kind, as text or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import plugin_option
from clbench.cli.completion import Complete, named

if TYPE_CHECKING:
    from clbench.core.options import Options
    from clbench.core.registry import Registry

COLUMNS = ("option", "type", "default", "meaning")


def list_command(name: str, kind: str, attribute: str, extra: Sequence[str], text: str) -> click.Command:
    """Return a command that lists `Registry.<attribute>`, each thing with its fields `extra` and its options."""

    def run(names: tuple[str, ...], plugins: tuple[Path, ...], as_json: bool) -> None:
        from clbench.core.entry_points import DISABLE
        from clbench.core.errors import SpecError, unknown
        from clbench.core.registry import discover

        registry = discover(files=plugins)
        known: Mapping[str, Any] = registry.listed(kind, getattr(registry, attribute))
        if missing := [n for n in names if n not in known]:
            raise SpecError("\n".join(unknown(kind, n, known, f"clbench {name}") for n in missing))
        things = [describe(registry, kind, known[n], extra) for n in names or known]
        if as_json:
            click.echo(json.dumps({name: things, "broken": registry.broken, "disabled": registry.disabled}, indent=2))
            return
        click.echo("\n\n".join(show(thing, extra) for thing in things))
        for plugin, error in registry.broken.items():
            click.echo(f"\n{plugin}  BROKEN: {error}")
        for plugin in registry.disabled:
            click.echo(f"\n{plugin}  disabled by {DISABLE}")

    return click.command(name, help=text)(_options(run, named(kind, attribute)))


def _options(run: Callable[..., None], complete: Complete) -> Callable[..., None]:
    run = plugin_option(run)
    run = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")(run)
    return click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete)(run)


def describe(registry: Registry, kind: str, info: Any, extra: Sequence[str]) -> dict[str, Any]:
    """Return what there is to know of one thing as plain values."""
    from clbench.core.options import as_json, document

    origin = registry.origins[kind, info.name]
    more = {key: list(value) if isinstance(value := getattr(info, key), tuple) else value for key in extra}
    if kind == "method":
        more["tuned_by_default"] = tuned_by_default(info.options)
    return {"name": info.name, "summary": info.summary, "distribution": origin.distribution,
            "version": origin.version, "plugin": origin.plugin, **more, "options": as_json(document(info.options))}


def tuned_by_default(options: type[Options]) -> str:
    """Return what `clbench tune` tries of a method where the experiment's file does not say it."""
    from clbench.core.options import Options, format_value, search_values
    from clbench.execution.default_spaces import RATE_FACTORS

    often = "" if options.trained_by_steps is Options.trained_by_steps else ", if something is trained by steps"
    return "; ".join([*(f"{name} = {', '.join(map(format_value, values))}"
                        for name, values in search_values(options).items()),
                      f"recipe.lr = {', '.join(map(format_value, RATE_FACTORS))} times the recipe's{often}"])


def default(option: Mapping[str, Any]) -> str:
    """Return an option's default as a command line takes it, or that it has none."""
    from clbench.core.options import format_value

    return "required" if option["required"] else format_value(option["default"])


def written(value: Any) -> str:
    """Return a field as text: a list with commas, a recipe as a file has it."""
    from clbench.core.options import format_value

    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {format_value(part)}" for name, part in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def show(thing: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Return what there is to know of one thing as text."""
    from tabulate import tabulate

    origin = f"{thing['distribution']} {thing['version']}".strip()
    lines = [f"{thing['name']}  ({origin})", f"  {thing['summary']}"]
    for key in (*extra, "tuned_by_default"):
        value = thing.get(key)
        if value is True:
            lines.append(f"  {key}")
        elif value:
            lines.append(f"  {key.replace('_', ' ')}: {written(value)}")
    rows = [[o["name"], o["type"], default(o), o["meaning"]] for o in thing["options"]]
    if rows:
        lines.append(textwrap.indent(tabulate(rows, headers=COLUMNS, tablefmt="plain", disable_numparse=True), "    "))
    return "\n".join(lines)


benchmarks = list_command("benchmarks", "benchmark", "benchmarks", ("scenarios",),
                          "List the installed benchmarks, their scenarios and options.")


methods = list_command("methods", "method", "strategies", ("paper", "reference", "recipe"),
                       "List the installed methods, where each comes from, and its options.")


models = list_command("models", "model", "models", (), "List the installed models and their options.")


trackers = list_command("trackers", "tracker", "trackers", (),
                        "List the installed trackers, which clbench run --log shows records to, and their options.")
