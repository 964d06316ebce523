"""Differences between the Python versions that clbench runs on, and a faster import of large libraries."""

import contextlib
import gc
import sys
from collections.abc import Iterator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib", "uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Turn garbage collection off inside, for importing a large library: it makes many objects and no garbage.

    With torch as a worker needs it 3.4 -> 3.0 s, with Avalanche 7.3 -> 6.5 s.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
