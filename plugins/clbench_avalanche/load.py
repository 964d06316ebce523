"""Import Avalanche for its strategies, without the warnings of its import."""

from __future__ import annotations

from clbench.data.avalanche.build import import_avalanche


def __getattr__(name: str) -> object:
    """Import Avalanche, then return the adapter."""
    if name != "Avalanche":
        raise AttributeError(name)
    import_avalanche()
    from clbench_avalanche.strategy import Avalanche

    return Avalanche
