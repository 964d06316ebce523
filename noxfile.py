"""Tests in environments of their own: every Python, the lowest versions allowed, every extra (`make test-all`)."""

from pathlib import Path

import nox
from packaging.requirements import Requirement

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# Old releases call what is deprecated by now, and some leave sockets open. Neither is our fault.
OLD = ["-W", "ignore::FutureWarning", "-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"]

nox.options.error_on_missing_interpreters = False  # the Pythons that are found; a CI that must have one says so


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests as README says."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest Python and the lowest versions that pyproject.toml allows."""
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(lower_bounds()) + "\n", encoding="utf-8")
    session.install("-c", str(constraints), "-e", ".[test]")
    session.run("python", "-m", "pytest", *OLD, *session.posargs)


@nox.session
def extras(session: nox.Session) -> None:
    """Run the tests that need an extra, with all extras; one that is skipped fails."""
    session.install("-e", ".[test,all]")
    session.run("python", "-m", "pytest", "-m", "extra and not slow", "--no-skips", *session.posargs)


def lower_bounds() -> list[str]:
    """Return constraints that pin what pyproject.toml names to the lowest version allowed."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    constraints = []
    for requirement in map(Requirement, lines):
        constraints += [f"{requirement.name}=={bound.version}" for bound in requirement.specifier
                        if bound.operator == ">="]
    return constraints
