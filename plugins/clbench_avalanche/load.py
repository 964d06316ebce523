"""Where Avalanche is imported for its strategies, without the warnings that its import raises."""

from __future__ import annotations

from clbench.data.avalanche.build import import_avalanche


def __getattr__(name: str) -> object:
    """Return the adapter, once Avalanche is there."""
    if name != "Avalanche":
        raise AttributeError(name)
    import_avalanche()
    from clbench_avalanche.strategy import Avalanche

    return Avalanche
