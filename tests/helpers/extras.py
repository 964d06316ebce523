"""Which distributions of an extra of clbench's are not installed."""

from importlib import metadata

from packaging.requirements import Requirement


def missing(extra):
    """Return the names of the distributions of an extra, as pyproject.toml has them, that are not installed."""
    found = [r.name for r in map(Requirement, metadata.requires("clbench"))
             if r.marker and "extra" in str(r.marker) and r.marker.evaluate({"extra": extra})]
    assert found, f"clbench has no extra {extra!r}"
    return [name for name in found if not any(True for _ in metadata.distributions(name=name))]
