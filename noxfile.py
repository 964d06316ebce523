"""Test in separate environments: every Python, the lowest allowed versions, every extra (`make test-all`)."""

from pathlib import Path

import nox
from packaging.requirements import Requirement

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# Old releases of dependencies call functions that are now deprecated, and some leave sockets open.
OLD = ["-W", "ignore::FutureWarning", "-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"]

nox.options.error_on_missing_interpreters = False  # skip missing Pythons, unless a CI job requires them


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests as the README describes."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take long."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "--slow", "-m", "slow", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest Python and the lowest versions that pyproject.toml allows."""
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(lower_bounds()) + "\n", encoding="utf-8")
    session.install("-c", str(constraints), "-e", ".[test]")
    session.run("python", "-m", "pytest", *OLD, *session.posargs)


@nox.session
def extras(session: nox.Session) -> None:
    """Run the tests that need an extra, with all extras installed. One that is skipped is a failure."""
    session.install("-e", ".[test,all]", "gguf")
    session.run("python", "-m", "pytest", "--slow", "-m", "extra", "--no-skips", *session.posargs)


def lower_bounds() -> list[str]:
    """Return constraints that pin each requirement in pyproject.toml to its lowest allowed version."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    constraints = []
    for requirement in map(Requirement, lines):
        constraints += [f"{requirement.name}=={bound.version}" for bound in requirement.specifier
                        if bound.operator == ">="]
    return constraints
