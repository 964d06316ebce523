"""The list commands: a line for each installed item of a kind, or all details of the named items."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import plugin_option
from clbench.cli.completion import Complete, complete_names
from clbench.core.objective import CAUSAL_LM, REGRESSION

if TYPE_CHECKING:
    from clbench.core.options import Options
    from clbench.core.registry import Registry

WIDTH = 99  # columns of the output
NAMED, PATTERN = "with a name", "any name"  # groups of benchmarks and models
HEADINGS = {
    ("benchmark", NAMED): "Benchmarks by name (clbench data shows which data they need)",
    ("benchmark", PATTERN): "Your own data (* stands for your file, folder or function)",
    ("model", NAMED): "Models of clbench and of plugins",
    ("model", PATTERN): "Models of other libraries (* stands for the model's name)",
    ("tracker", NAMED): "Trackers",
}
METHOD_FIELDS = ("family", "year", "paper", "reference", "recipe", "objectives", "task_free", "parts_per_task",
                 "display_name")


def list_command(name: str, kind: str, attribute: str, extra: Sequence[str], text: str) -> click.Command:
    """Return a command that lists `Registry.<attribute>`, each item with its fields `extra` and its options."""

    def run(names: tuple[str, ...], plugins: tuple[Path, ...], as_json: bool) -> None:
        from clbench.core.entry_points import DISABLE
        from clbench.core.errors import SpecError, unknown
        from clbench.core.registry import discover

        registry = discover(files=plugins)
        declarations: Mapping[str, Any] = registry.list_declarations(kind, getattr(registry, attribute))
        names = tuple(n if n in declarations else registry.pattern(kind, n) or n for n in names)
        if missing := [n for n in names if n not in declarations]:
            raise SpecError("\n".join(unknown(kind, n, declarations, f"clbench {name}") for n in missing))
        if as_json:
            entries = [describe(registry, kind, declarations[n], extra) for n in names or declarations]
            click.echo(json.dumps({name: entries, "broken": registry.broken, "disabled": registry.disabled}, indent=2))
            return
        if names:
            click.echo("\n\n".join(show(describe(registry, kind, declarations[n], extra), kind) for n in names))
            return
        for heading, infos in by_family(kind, declarations).items():
            click.echo("\n".join([heading, *lines(infos)]) + "\n")
        for plugin, error in registry.broken.items():
            click.echo(f"{plugin}  BROKEN: {error}\n")
        for plugin in registry.disabled:
            click.echo(f"{plugin}  disabled by {DISABLE}\n")
        click.echo(f"clbench {name} NAME shows everything about one of them, including its options.")

    return click.command(name, help=text)(_options(run, complete_names(kind, attribute)))


def _options(run: Callable[..., None], complete: Complete) -> Callable[..., None]:
    run = plugin_option(run)
    run = click.option("--json", "as_json", is_flag=True, help="Print all details as JSON.")(run)
    return click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete)(run)


def by_family(kind: str, known: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return declarations by the heading under which lists show them: methods by family, others by name."""
    from clbench.core.hookspecs import FAMILIES

    groups: dict[str, list[Any]] = {}
    for family in FAMILIES if kind == "method" else (NAMED, PATTERN):
        infos = [info for info in known.values() if family_of(info) == family]
        if infos:
            groups[HEADINGS.get((kind, family), family[0].upper() + family[1:])] = infos
    return groups


def family_of(info: Any) -> str:
    """Return the family of a method. For other things, return whether the name is a plain name or a pattern."""
    return str(getattr(info, "family", PATTERN if getattr(info, "any_name", False) else NAMED))


def lines(infos: Sequence[Any]) -> Iterator[str]:
    """Yield a line for each declaration with its name, its summary and a method's year. Long text is cut."""
    width = max(len(info.name) for info in infos)
    room = WIDTH - width - 4
    if hasattr(infos[0], "year"):
        room -= 6
    for info in infos:
        text = textwrap.shorten(info.summary, room, placeholder=" ...")
        yield f"  {info.name:<{width}}  {text:<{room}}  {getattr(info, 'year', '')}".rstrip()


def describe(registry: Registry, kind: str, info: Any, extra: Sequence[str]) -> dict[str, Any]:
    """Return everything about one declaration as plain values."""
    from clbench.core.options import document

    origin = registry.origins[kind, info.name]
    extra_values = {key: list(value) if isinstance(value := getattr(info, key), tuple) else value for key in extra}
    if kind == "method":
        extra_values["tuned_by_default"] = tuned_by_default(info.options)
        extra_values["needs_boundaries"] = explain_boundaries(info)
    return {"name": info.name, "summary": info.summary, "distribution": origin.distribution,
            "version": origin.version, "plugin": origin.plugin, **extra_values,
            "options": [asdict(option) for option in document(info.options)]}


def tuned_by_default(options: type[Options]) -> str:
    """Return the values that `clbench tune` tries for a method if the experiment's file does not define them."""
    from clbench.core.option_marks import search_values
    from clbench.core.options import Options, format_value
    from clbench.execution.candidates import RATE_FACTORS

    condition = "" if options.trained_by_steps is Options.trained_by_steps else ", if something is trained by steps"
    return "; ".join([*(f"{name} = {', '.join(map(format_value, values))}"
                        for name, values in search_values(options).items()),
                      f"recipe.lr = {', '.join(map(format_value, RATE_FACTORS))} times the configured rate{condition}"])


def explain_boundaries(info: Any) -> str:
    """Return why a task-free method needs task boundaries with its default options; empty if it does not."""
    if not info.task_free or any(field.is_required() for field in info.options.model_fields.values()):
        return ""
    return str(info.options().in_scenario("class", boundaries=False).needs_boundaries)


def default(option: Mapping[str, Any]) -> str:
    """Return an option's default as the command line takes it, or the note that it has none."""
    from clbench.core.options import format_value

    return "required" if option["required"] else format_value(option["default"])


def format_field(value: Any) -> str:
    """Return a field as text: a list with commas, a training configuration as in a file."""
    from clbench.core.options import format_value

    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {format_value(part)}" for name, part in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def facts(thing: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a declaration's facts, without its summary and options."""
    yield from ((key, str(thing[key])) for key in ("family", "paper") if thing.get(key))
    if thing.get("scenarios"):
        first, *rest = thing["scenarios"]
        yield "scenarios", ", ".join([f"{first} (default)", *rest])
    if thing.get("reference"):
        yield "role", "a reference that other methods are compared with; tables set it apart"
    if thing.get("recipe"):
        yield "published recipe", f"{format_field(thing['recipe'])} (used with recipe = \"published\" in a file)"
    if "task_free" in thing:
        if thing["needs_boundaries"]:
            yield "task-free", f"not with its default options: {thing['needs_boundaries']}"
        else:
            yield "task-free", ("yes: it does not need to know where tasks end (--boundaries hidden)"
                                if thing["task_free"] else "no: it needs to know where tasks end")
    if CAUSAL_LM.name in thing.get("objectives", ()):
        yield "language models", "yes: it fine-tunes causal language models too"
    if REGRESSION.name in thing.get("objectives", ()):
        yield "numbers", "yes: it predicts numbers too"
    if thing.get("parts_per_task"):
        yield "classes", "each class must arrive in one task only: no --blur and no --repeat with class splits"
    if thing.get("display_name"):
        yield "name in reports", thing["display_name"]
    if thing.get("tuned_by_default"):
        yield "tuned by default", thing["tuned_by_default"]
    yield "package", f"{thing['distribution']} {thing['version']}".strip()


def show(thing: Mapping[str, Any], kind: str) -> str:
    """Return everything about one declaration as text."""
    formatter = click.HelpFormatter(width=WIDTH)
    formatter.write(f"{thing['name']}\n")
    formatter.indent()
    formatter.write_text(thing["summary"])
    formatter.dedent()
    formatter.write("\n")
    formatter.indent()
    formatter.write_dl(list(facts(thing)))
    formatter.dedent()
    rows = [(f"{o['name']} ({o['type']})", f"{o['meaning']}  [{_default_note(o)}]") for o in thing["options"]]
    if rows:
        set_by = f", or --set {thing['name']}.OPTION=VALUE" if kind == "method" else ""
        with formatter.section(f"Options ({thing['name']}:OPTION=VALUE{set_by})"):
            formatter.write_dl(rows)
    return formatter.getvalue().rstrip("\n")


def _default_note(option: Mapping[str, Any]) -> str:
    return "required" if option["required"] else f"default: {default(option)}"


benchmarks = list_command("benchmarks", "benchmark", "benchmarks", ("scenarios",),
                          "List the installed benchmarks, or show all details of the benchmarks that you name.")


methods = list_command("methods", "method", "strategies", METHOD_FIELDS,
                       "List the installed methods by family, or show all details of the methods that you name.")


models = list_command("models", "model", "models", (),
                      "List the installed models, or show all details of the models that you name.")


trackers = list_command("trackers", "tracker", "trackers", (), "List the installed experiment loggers (trackers), "
                        "or show all details of those that you name.\n\nclbench run --log NAME writes results to them.")
