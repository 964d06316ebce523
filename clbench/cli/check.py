"""`clbench check`: whether strategies keep the rules that the harness relies on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import plugin_option
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.core.hookspecs import StrategyInfo
    from clbench.core.registry import Registry


EXAMPLES = (
    ("clbench check lora:rank=2", "an installed method, with options"),
    ("clbench check my_method.py", "every method of a file, which need not be installed"),
)


@click.command("check", cls=Command, examples=EXAMPLES)
@click.argument("targets", nargs=-1, required=True, metavar="NAME|FILE.py...")
@plugin_option
def command(targets: tuple[str, ...], plugins: tuple[Path, ...]) -> int:
    """Run methods on a tiny stream and report broken rules; exit with 1 if there are any."""
    from clbench.core.errors import SpecError
    from clbench.core.options import parse_named
    from clbench.core.registry import discover

    files = [Path(t) for t in targets if t.endswith(".py")]
    registry = discover(files=[*plugins, *files])
    wanted: list[tuple[str, StrategyInfo, dict[str, Any]]] = []
    for target in targets:
        if target.endswith(".py"):
            strategies = brought_by(registry, Path(target))
            if not strategies:
                raise SpecError(f"{target} brings no strategy; only strategies can be checked")
            wanted += [(info.name, info, {}) for info in strategies]
        else:
            name, options = parse_named(target)
            wanted.append((target, registry.strategy(name), options))
    return max([examine(*arguments) for arguments in wanted])


def brought_by(registry: Registry, path: Path) -> list[StrategyInfo]:
    """Return the strategies that a plugin file defines."""
    return [info for name, info in registry.strategies.items()
            if registry.origins["method", name].distribution == str(path.absolute())]


def examine(text: str, info: StrategyInfo, options: dict[str, Any]) -> int:
    """Print the result of each check of a method, and return 1 if a check failed."""
    from clbench.core.options import validate
    from clbench.testing.checks import CHECKS, check, suggest

    validate(info.options, options, info.name, "clbench methods")
    click.echo(text)
    problems: list[str] = []
    for name, function in CHECKS.items():
        problem = failure(partial(check, info, name, options), info)
        if problem:
            says = "the same" if problem in problems else problem
            problems.append(problem)
        else:
            says = (function.__doc__ or "").splitlines()[0].removeprefix("Check that ").rstrip(".")
        click.echo(f"  {'FAIL' if problem else 'ok':4}  {name}: {says}")
    for line in [] if problems else suggest(info, options):
        click.echo(f"  note  {line}")
    total = len(CHECKS)
    click.echo(f"{text} breaks {len(problems)} of {total} rules" if problems else f"{text} keeps all {total} rules")
    return int(bool(problems))


def failure(call: Callable[[], None], info: StrategyInfo) -> str | None:
    """Return a check's failure as one line, with the place of the error if the method itself raised it."""
    from clbench.core.entry_points import package_of
    from clbench.core.errors import ClbenchError
    from clbench.core.user_code import format_error
    from clbench.testing.checks import NonConforming

    try:
        call()
    except (NonConforming, ClbenchError) as error:
        return " ".join(str(error).split())
    except Exception as error:  # a bug in the method: its author wants to know where
        return format_error(error, package_of(info.strategy))
    return None
