"""`clbench new-plugin`: begin a method of one's own."""

from __future__ import annotations

import keyword
import os
import re
import shlex
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import click

from clbench.core.errors import SpecError

if TYPE_CHECKING:
    from clbench.core.registry import Registry


@click.command("new-plugin")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to.  [default: clbench-NAME]")
def command(name: str, out: Path | None) -> None:
    """Write a small distribution with a working method, its test and its entry point."""
    from clbench.core.registry import discover

    written = write_plugin(name, out, discover())
    for path in written:
        click.echo(path)
    method = name.removeprefix("clbench-")
    folder = os.path.join(os.curdir, written[0].parent)  # pip takes a bare name for a package of the index
    click.echo(f"\nnext:\n    pip install -e {shlex.quote(folder)}\n    clbench check {method}\n"
               f"    clbench run --methods {method},naive,ewc\nthen make {written[3]} your own")


FILES = {"pyproject.toml": "pyproject.toml", "README.md": "README.md", "declaration.py": "{module}/__init__.py",
         "strategy.py": "{module}/strategy.py", "test.py": "tests/test_{module}.py"}
LONGEST = 40  # characters of a name, for lines that stay within 120


def write_plugin(name: str, folder: Path | None, registry: Registry) -> list[Path]:
    """Write the distribution of a strategy `name` into a new or empty folder and return its files.

    The folder is `clbench-NAME` here if none is given.

    Raises:
        SpecError: the name does not do or is taken, or the folder holds something already or cannot be written.
    """
    name = name.removeprefix("clbench-")
    cls = "".join(part.capitalize() for part in name.split("-"))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > LONGEST or keyword.iskeyword(cls):
        raise SpecError(f"{name!r} does not do as a method's name; small letters, digits and single - between them do, "
                        f"up to {LONGEST}, as in my-method")
    if name in registry.strategies:
        raise SpecError(f"there is a method {name!r} already, of {registry.origins['method', name]}; take another name")
    distribution = f"clbench-{name}"
    values = {"name": name, "distribution": distribution, "module": distribution.replace("-", "_"), "cls": cls,
              "version": version("clbench")}
    folder = folder or Path(distribution)
    written = []
    try:
        if folder.exists() and any(folder.iterdir()):
            raise SpecError(f"{folder} is not empty; choose another folder with --out")
        for source, target in FILES.items():
            path = folder / target.format(**values)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (files("clbench.cli") / "templates" / f"{source}.in").read_text(encoding="utf-8")
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise SpecError(f"cannot write {folder}: {error.strerror or error}; choose another folder with --out") from None
    return written
