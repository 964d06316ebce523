"""The command line: `clbench COMMAND`. A command's module is imported when the command, or its help, is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from clbench import interrupts
from clbench.errors import ClbenchError, unknown

# Each is clbench.cli.<name>.command, with _ for -.
COMMANDS = ("run", "tune", "report", "compare", "diff", "verify", "adapters", "lora", "pretrain", "params", "methods",
            "benchmarks", "models", "trackers", "check", "new-plugin")


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, which import nothing heavy until they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they are shown."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"clbench.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(unknown("command", args[0], COMMANDS, "clbench --help"))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clbench", prog_name="clbench")
def group() -> None:
    r"""Compare continual-learning methods fairly, and see what each costs.

    \b
    clbench run --methods lora,ewc            the first comparison: offline, no GPU, under a minute
    clbench run benchmarks/split_mnist.toml   an experiment from a file
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 all done, 1 a trial failed or runs differ, 2 bad input, 130 interrupted.

    SIGTERM, which clusters send before they kill, interrupts as Ctrl-C does.
    """
    with interrupts.caught():
        code = call(sys.argv[1:] if args is None else list(args))
    sys.exit(code)


def call(args: Sequence[str]) -> int:
    """Run the command line and return the exit code; what the user can mend becomes one line per mistake."""
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
