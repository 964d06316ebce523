"""Write commands.md and methods.md from the code: `make docs-pages`. A test checks that they are current."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from clbench.cli import group
from clbench.cli.help import WithExamples, group_options
from clbench.cli.listing import METHOD_FIELDS, by_family, default, describe, format_field
from clbench.core.compat import tomllib
from clbench.core.registry import Registry, discover
from clbench.experiment import references
from clbench.report.formats.markdown import escape

HERE = Path(__file__).parent
MADE = "<!-- Made by `make docs-pages` from the code; what is written here is lost. -->"
COMMANDS = """\
Look up every command and option. `clbench COMMAND --help` prints the same.

| exit code | meaning |
| --- | --- |
| 0 | everything succeeded |
| 1 | a trial failed or diverged, a dry run failed, a number was not reproduced, two runs differ, a check failed, no \
method meets the constraints, data are missing (`clbench data`), or something is lost (`--fail-on lost`) |
| 2 | the input is wrong; a line for each mistake |
| 130 | interrupted by Ctrl-C or SIGTERM |"""
METHODS = """\
Look up every method, benchmark and model that comes with clbench, with all options. `clbench methods`,
`clbench benchmarks`, `clbench models` and `clbench trackers` list everything that is installed. Set an option with
`ewc:strength=1e4`, with `--set ewc.strength=1e4`, or in a [study file](study-files.md).

`--benchmark package.module:function` or `path/to/file.py:function` takes any function that returns an Avalanche
benchmark. `--model torchvision:NAME`, `timm:NAME` (extra `clbench[timm]`) and `hf:NAME` (extra `clbench[text]`) take
the models of these libraries. A `*` in a name stands for a name of your own, as in `images:photos`."""
KINDS = (  # (heading, kind, attribute of the registry, fields that are shown in addition to the summary)
    ("Methods", "method", "strategies", METHOD_FIELDS),
    ("Benchmarks", "benchmark", "benchmarks", ("scenarios",)),
    ("Models", "model", "models", ()),
    ("Trackers", "tracker", "trackers", ()),
)
LEFT_OUT = {"avalanche:GEM"}  # only declared if quadprog is installed, which older releases of pip skip


def main() -> None:
    """Write both pages."""
    for name, text in (("commands.md", commands()), ("methods.md", methods())):
        (HERE / name).write_text(text, encoding="utf-8")


def commands() -> str:
    """Return commands.md: every command with the text of its `--help`."""
    context = click.Context(group, info_name="clbench")
    found = list(walk(group, context))
    overview = [[f"[{c.command_path}](#{c.command_path.replace(' ', '-')})", escape(c.command.get_short_help_str(200))]
                for c in found]
    blocks = [MADE, "# Commands", COMMANDS, table(["command", "what it does"], overview)]
    for one in found:
        blocks += section(one)
    return "\n\n".join(blocks) + "\n"


def walk(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """Yield a context for every command below a group; a group comes before its commands."""
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        below = click.Context(inner, parent=context, info_name=name)
        yield below
        yield from walk(inner, below)


def section(context: click.Context) -> Iterator[str]:
    """Yield the blocks of one command: usage, help, options."""
    command = context.command
    yield f"## {context.command_path}"
    yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield from map(escape, inspect.cleandoc(command.help or "").split("\n\n"))
    if isinstance(command, WithExamples) and command.examples:
        lines = [line + (f"    # {meaning}" if meaning else "") for line, meaning in command.examples]
        yield "<!-- not run: examples of the help text -->\n```bash\n" + "\n".join(lines) + "\n```"
    groups = group_options(command, context)
    for heading, options in groups.items():
        if len(groups) > 1:
            yield f"{heading}:"
        if rows := [[code(names), escape(text)] for names, text in records(options, context)]:
            yield table(["option", "meaning"], rows)


def records(options: Sequence[click.Option], context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the names and the meaning of each option except `--help`."""
    for option in options:
        record = option.get_help_record(context)
        if record and "--help" not in option.opts:
            yield record


def methods() -> str:
    """Return methods.md: all methods, benchmarks, models and formats that come with clbench, with every option."""
    registry = discover()
    blocks = [MADE, "# Methods, benchmarks, models", METHODS]
    for heading, kind, attribute, extra in KINDS:
        blocks += [f"## {heading}", *overview(registry, kind, attribute), *listing(registry, kind, attribute, extra)]
    formats = [[code(i.name), code(i.suffix), escape(i.summary)] for i in registry.formats.values()
               if ours(registry, "report format", i.name)]
    blocks += ["## Report formats", table(["format", "ending", "what it is"], formats)]
    return "\n\n".join(blocks) + "\n"


def overview(registry: Registry, kind: str, attribute: str) -> Iterator[str]:
    """Yield tables of all objects of one kind, one row each, in the groups of the list commands."""
    listed = registry.list_declarations(kind, getattr(registry, attribute))
    known = {name: info for name, info in listed.items() if ours(registry, kind, name)}
    stored = tomllib.loads((HERE / "stored_and_trained.toml").read_text(encoding="utf-8"))["methods"]
    headers = [kind, "what it is"]
    for heading, infos in by_family(kind, known).items():
        yield f"{heading}:"
        if kind == "method" and infos[0].name in stored:
            yield table([*headers, "stores about earlier tasks", "trains", "year"], (
                [code(i.name), escape(i.summary), *map(escape, stored[i.name]), i.year] for i in infos))
        elif kind == "method":  # Avalanche's strategies
            yield table([*headers, "year"], ([code(i.name), escape(i.summary), i.year] for i in infos))
        else:
            yield table(headers, ([code(i.name), escape(i.summary)] for i in infos))


def published(name: str) -> str:
    """Return a sentence on the references (docs/verify.md) that have published numbers of a method, with counts."""
    cells = {key: sum(cell.method.name == name for cell in references.read_reference(path).cells)
             for key, path in references.shipped().items()}
    if not any(cells.values()):
        return ("Published numbers: `clbench verify` repeats none "
                "([which there are](paper-vs-code.md#methods-without-a-reference)).")
    return "Published numbers that `clbench verify` repeats: " + ", ".join(
        f"{code(key)} ({count})" for key, count in cells.items() if count) + "."


def listing(registry: Registry, kind: str, attribute: str, extra: Sequence[str]) -> Iterator[str]:
    """Yield the blocks of text about all objects of one kind."""
    for name, info in registry.list_declarations(kind, getattr(registry, attribute)).items():
        if not ours(registry, kind, name):
            continue
        thing = describe(registry, kind, info, extra)
        about = thing["summary"]
        if thing.get("reference"):
            about += "; a reference, set apart in tables"
        if thing.get("scenarios"):
            about += f"; scenarios {', '.join(thing['scenarios'])}"
        if thing.get("recipe"):
            about += f"; published recipe: {format_field(thing['recipe'])}"
        yield f"### {code(name) if '*' in name else name}"
        yield escape(f"{about} ({thing['paper']})" if thing.get("paper") else about)
        if kind == "method":
            yield published(name)
        if tuned := thing.get("tuned_by_default"):
            yield f"Tuned by default ([tuning](tuning.md#what-is-searched)): {escape(tuned)}."
        if thing["options"]:
            yield table(["option", "type", "default", "meaning"],
                        ([code(o["name"]), escape(o["type"]), code(default(o)), escape(o["meaning"])]
                         for o in thing["options"]))


def ours(registry: Registry, kind: str, name: str) -> bool:
    """Return whether an object comes with clbench, and not from another installed plugin or an optional package."""
    return registry.origins[kind, name].distribution == "clbench" and name not in LEFT_OUT


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the cells are Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows))


def code(text: str) -> str:
    """Return text as a table cell in code style."""
    return f"`{text.replace('|', chr(92) + '|')}`"


if __name__ == "__main__":
    main()
