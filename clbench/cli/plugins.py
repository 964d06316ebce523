"""`clbench new-plugin` and `clbench check`: create a method, a benchmark or a model, and check methods.

`clbench check` checks whether strategies follow the rules that the harness relies on.
"""

from __future__ import annotations

import keyword
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import PATH, device_option, plugin_option
from clbench.cli.help import Command
from clbench.core.errors import SpecError, message_of

if TYPE_CHECKING:
    import torch

    from clbench.core.hookspecs import StrategyInfo
    from clbench.core.registry import Registry


@dataclass(frozen=True)
class Thing:
    """A kind of object that a plugin can provide: a method, a benchmark or a model."""

    what: str  # its name in a sentence
    module: str  # name of the module with its code
    trial: tuple[str, ...]  # commands to try it with after installation


THINGS = {
    "method": Thing("a continual-learning method", "strategy",
                    ("clbench check {name}", "clbench run --methods {name},naive,ewc")),
    "benchmark": Thing("a continual-learning benchmark", "benchmark",
                       ("clbench run --benchmark {name} --methods naive,er",)),
    "model": Thing("a model", "model", ("clbench run --model {name} --methods naive,lora",)),
}
KINDS = {  # thing that each kind provides, and content of its template (`templates/KIND`)
    "method": ("method", "an L2 penalty towards the weights after the last task"),
    "replay": ("method", "experience replay from a reservoir"),
    "regularization": ("method", "a penalty by each weight's Fisher information"),
    "benchmark": ("benchmark", "images of stripes in noise"),
    "model": ("model", "a multilayer perceptron of tanh units"),
}
LONGEST = 40  # largest number of characters of a name, so that lines stay within 120


PLUGIN_EXAMPLES = (
    ("clbench new-plugin my-method", "creates the folder clbench-my-method"),
    ("clbench new-plugin my-data --kind benchmark", "creates a package with a benchmark"),
)


@click.command("new-plugin", cls=Command, examples=PLUGIN_EXAMPLES)
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), default="method", help="Kind of plugin: method, "
              "replay (a method that replays samples), regularization (a method with a quadratic penalty), benchmark "
              "or model.  [default: method]")
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the new package.  [default: "
              "clbench-NAME]")
def new_plugin(name: str, kind: str, out: Path | None) -> None:
    """Create a small package with a working method, benchmark or model.

    The package also has a test, and an entry point by which clbench finds the plugin. Install it with pip install -e
    FOLDER, and replace its code with your own.
    """
    from clbench.core.registry import discover

    paths = write_plugin(name, out, discover(), kind)
    for path in paths:
        click.echo(path)
    folder = os.path.join(os.curdir, paths[0].parent)  # pip takes a bare name for a package of the index
    click.echo(f"\nnext:\n    pip install -e {shlex.quote(folder)}")
    for line in THINGS[KINDS[kind][0]].trial:
        click.echo(f"    {line.format(name=name.removeprefix('clbench-'))}")
    click.echo(f"then make {paths[3]} your own")


def write_plugin(name: str, folder: Path | None, registry: Registry, kind: str = "method") -> list[Path]:
    """Write the distribution of a new method, benchmark or model into a new or empty folder and return its files.

    Args:
        name: name of the new method, benchmark or model.
        folder: the folder, or None for `clbench-NAME` in the current folder.
        registry: the installed methods, benchmarks and models.
        kind: one of `KINDS`.

    Raises:
        SpecError: the name is invalid or taken, or the folder is not empty or cannot be written.
    """
    thing, start = KINDS[kind]
    name = name.removeprefix("clbench-")
    cls = "".join(part.capitalize() for part in name.split("-"))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST or keyword.iskeyword(cls):
        raise SpecError(f"{name!r} is not a valid name of a {thing}: use at most {LONGEST} lowercase letters, digits "
                        f"and single hyphens between them, beginning with a letter, as in my-{thing}")
    distribution = f"clbench-{name}"
    module = distribution.replace("-", "_")
    if (thing, name) in registry.origins:
        raise SpecError(f"there is a {thing} {name!r} already, of {registry.origins[thing, name]}; take another name")
    if registry.manager.has_plugin(module):
        raise SpecError(f"there is a plugin {module!r} already; take another name")
    values = {"name": name, "distribution": distribution, "module": module, "cls": cls, "what": THINGS[thing].what,
              "start": start, "version": version("clbench")}
    code = f"{THINGS[thing].module}.py"
    sources = {"pyproject.toml": "pyproject.toml", f"{thing}/README.md": "README.md",
               f"{kind}/declaration.py": f"{module}/__init__.py", f"{kind}/{code}": f"{module}/{code}",
               f"{kind}/test.py": f"tests/test_{module}.py"}
    folder = folder or Path(distribution)
    paths = []
    try:
        if folder.exists() and any(folder.iterdir()):
            raise SpecError(f"{folder} is not empty; choose another folder with --out")
        for source, target in sources.items():
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (files("clbench.cli") / "templates" / f"{source}.in").read_text(encoding="utf-8")
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise SpecError(f"cannot write {folder}: {error.strerror or error}; choose another folder with --out") from None
    return paths


CHECK_EXAMPLES = (
    ("clbench check lora:rank=2", "checks an installed method, with options"),
    ("clbench check my_method.py", "checks every method of a file, without installing it"),
    ("clbench check my_method.py --device cuda", "finds tensors that are not on the GPU"),
)


@click.command("check", cls=Command, examples=CHECK_EXAMPLES)
@click.argument("targets", nargs=-1, metavar="NAME|FILE.py...")
@device_option("cpu", default="cpu")
@plugin_option
def check(targets: tuple[str, ...], device: str, plugins: tuple[Path, ...]) -> int:
    """Check that methods follow the rules of the plugin interface.

    clbench runs each method on a tiny stream and lists the rules that it breaks. The exit code is 1 if there are any.
    If a method keeps all rules, clbench prints which parameters it trains. With --plugin alone, it checks every method
    of the file.
    """
    from clbench.core.device import pick_device
    from clbench.core.errors import SpecError
    from clbench.core.options import parse_named
    from clbench.core.registry import discover

    targets = targets or tuple(map(str, plugins))
    if not targets:
        raise click.UsageError("name a method or a file to check, as in clbench check my_method.py")
    files = [Path(t) for t in targets if t.endswith(".py")]
    registry = discover(files=[*plugins, *files])
    methods: list[tuple[str, StrategyInfo, dict[str, Any]]] = []
    for target in targets:
        if target.endswith(".py"):
            strategies = strategies_in_file(registry, Path(target))
            if not strategies:
                raise SpecError(f"{target} brings no strategy; only strategies can be checked")
            methods += [(info.name, info, {}) for info in strategies]
        else:
            name, options = parse_named(target)
            methods.append((target, registry.strategy(name), options))
    return max([examine(*arguments, pick_device(device)) for arguments in methods])


def strategies_in_file(registry: Registry, path: Path) -> list[StrategyInfo]:
    """Return the strategies that a plugin file defines."""
    return [info for name, info in registry.strategies.items()
            if registry.origins["method", name].distribution == str(path.absolute())]


def examine(text: str, info: StrategyInfo, options: dict[str, Any], device: torch.device) -> int:
    """Print the result of each check of a method on a device, and return 1 if a check failed."""
    from clbench.core.options import validate
    from clbench.report.formatting import plural
    from clbench.testing import checks

    validate(info.options, options, info.name, "clbench methods")
    click.echo(text)
    failed: dict[str, list[str]] = {}  # names of rules, by the problem
    for name, function in checks.CHECKS.items():
        problem = failure(partial(checks.check, info, name, options, device), info)
        if problem:
            failed.setdefault(problem, []).append(name)
            if len(failed[problem]) > 1:
                continue
        message = problem or (function.__doc__ or "").splitlines()[0].removeprefix("Check that ").rstrip(".")
        click.echo(f"  {'FAIL' if problem else 'ok':4}  {name}: {message}")
    untested = 0
    for first, *rest in failed.values():
        if rest:
            untested += len(rest)
            click.echo(f"  note  {plural(len(rest), 'rule')} could not be tested for the same reason as {first}: "
                       f"{', '.join(rest)}")
    for line in [] if failed else [*checks.describe(info, options), *checks.suggest(info, options)]:
        click.echo(f"  note  {line}")
    total, others = len(checks.CHECKS), f"; {untested} could not be tested" if untested else ""
    click.echo(f"{text} breaks {len(failed)} of {total} rules{others}" if failed else f"{text} keeps all {total} rules")
    return int(bool(failed))


def failure(call: Callable[[], None], info: StrategyInfo) -> str | None:
    """Return a check's failure as one line, with the place of the error if the method itself raised it."""
    from clbench.core.entry_points import package_of
    from clbench.core.errors import ClbenchError
    from clbench.core.user_code import format_error
    from clbench.testing.tiny import NonConforming

    try:
        call()
    except (NonConforming, ClbenchError) as error:
        return message_of(error)
    except Exception as error:  # a bug in the method: its author wants to know where
        return format_error(error, package_of(info.strategy))
    return None
