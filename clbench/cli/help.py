"""The help of commands: the description, examples, then the options in groups."""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import pairwise
from typing import Any

import click

Examples = tuple[tuple[str, str], ...]  # command lines, each with an explanation or ""
WHAT, HOW, WHERE = "What is run", "How it is trained", "Where and how it runs"
ALL_OPTIONS = "clbench.all_options"  # in a context's `meta`: whether `--help-all` was given
COMPLETING = "_CLBENCH_COMPLETE"  # set by the scripts of `clbench completion` when a shell asks
ONE_LIST = 12  # up to this many options are shown without headings
RUNS = frozenset({"device", "out", "shard", "log", "plugins", "stale", "dry_run", "opens", "quiet", "as_json",
                  "help_all",
                  "help", "_click_default_help"})  # by old and by new versions of click


class WithExamples(click.Command):
    """A command or a group of commands whose help has examples after the description."""

    def __init__(self, *args: Any, examples: Examples = (), **kwargs: Any) -> None:
        """Accept the arguments of `click.Command`, and examples."""
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, then its examples."""
        super().format_help_text(ctx, formatter)
        write_examples(self.examples, formatter)


class Command(WithExamples):
    """A command with examples and with its options in groups.

    If a command names `common` options, `--help` shows only these, and `--help-all` shows all.
    """

    def __init__(self, *args: Any, common: Collection[str] = (), **kwargs: Any) -> None:
        """Accept the arguments of `WithExamples`, and the names of the options that `--help` shows; all if empty."""
        super().__init__(*args, **kwargs)
        self.common = frozenset(common)
        if common:
            option_count = sum(isinstance(option, click.Option) and not option.hidden for option in self.params)
            self.params.append(click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False,
                                            callback=show_all, help=f"Show all {option_count + 2} options and exit."))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; raise an error if a space has split a list in two."""
        for index, (first, second) in enumerate(() if ctx.resilient_parsing else pairwise(args)):
            is_split = first.endswith(",") and not second.startswith("-") and not os.path.exists(second)
            if is_split or (second.startswith(",") and not (first.startswith("-") and "=" not in first)):
                option = f"{args[index - 1]} " if index and args[index - 1].startswith("--") else ""
                raise click.UsageError(f"{option}{first} {second}: a space after the comma? write "
                                       f"{option}{first}{second}", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section for each group; without `--help-all` only the common ones, if there are any."""
        options = visible(self, ctx)
        if self.common and not ctx.meta.get(ALL_OPTIONS):
            options = [option for option in options if option.name in self.common or not option.expose_value]
        for heading, group in split_by_heading(options).items():
            with formatter.section(heading):
                formatter.write_dl([record for option in group if (record := option.get_help_record(ctx))])


class Group(WithExamples, click.Group):
    """A group of commands with examples."""

    command_class = Command


def write_examples(examples: Examples, formatter: click.HelpFormatter) -> None:
    """Write the examples. Command lines are never wrapped, so that users can copy them."""
    if not examples:
        return
    longest = max(len(line) for line, _ in examples)
    same_line = all(4 + longest + len(meaning) <= formatter.width for _, meaning in examples)
    with formatter.section("Examples"):
        for line, meaning in examples:
            indent = " " * formatter.current_indent
            if same_line or not meaning:
                formatter.write(f"{indent}{line:<{longest}}  {meaning}".rstrip() + "\n")
            else:
                formatter.write(f"{indent}{line}\n")
                formatter.indent()
                formatter.write_text(meaning)
                formatter.dedent()


def show_all(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the help with all options, and exit, if `--help-all` was given."""
    if value and not context.resilient_parsing:
        context.meta[ALL_OPTIONS] = True
        click.echo(context.get_help())
        context.exit()


def visible(command: click.Command, context: click.Context) -> list[click.Option]:
    """Return the options of a command that are not hidden."""
    return [p for p in command.get_params(context) if isinstance(p, click.Option) and not p.hidden]


def group_options(command: click.Command, context: click.Context) -> dict[str, list[click.Option]]:
    """Return all options of a command by heading."""
    return split_by_heading(visible(command, context))


def split_by_heading(options: list[click.Option]) -> dict[str, list[click.Option]]:
    """Return the options by heading. If there are only a few, all are under "Options"."""
    from clbench.experiment.execution_settings import ExecutionSettings  # imports pydantic: slow for `clbench --help`
    from clbench.experiment.recipe import Recipe

    recipe_names, execution_names = {*Recipe.model_fields, "online"}, {*ExecutionSettings.model_fields} | RUNS
    groups: dict[str, list[click.Option]] = {WHAT: [], HOW: [], WHERE: []}
    if len(options) <= ONE_LIST:
        return {"Options": options}
    for option in options:
        groups[HOW if option.name in recipe_names else WHERE if option.name in execution_names else WHAT].append(option)
    return {heading: members for heading, members in groups.items() if members}
