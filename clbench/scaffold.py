"""A new plugin as a small distribution that can be installed, from the templates that come with clbench."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from clbench.builtin import version
from clbench.errors import SpecError
from clbench.plugins import Registry

FILES = {"pyproject.toml": "pyproject.toml", "README.md": "README.md", "declaration.py": "{module}/__init__.py",
         "strategy.py": "{module}/strategy.py", "test.py": "tests/test_{module}.py"}
LONGEST = 40  # characters of a name, for lines that stay within 120


def write(name: str, folder: Path | None, registry: Registry) -> list[Path]:
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
              "version": version()}
    folder = folder or Path(distribution)
    written = []
    try:
        if folder.exists() and any(folder.iterdir()):
            raise SpecError(f"{folder} is not empty; choose another folder with --out")
        for source, target in FILES.items():
            path = folder / target.format(**values)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (files("clbench") / "templates" / f"{source}.in").read_text(encoding="utf-8")
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise SpecError(f"cannot write {folder}: {error.strerror or error}; choose another folder with --out") from None
    return written
