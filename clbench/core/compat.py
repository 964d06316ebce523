"""What differs between the Python versions that clbench runs on, and how it imports what is large."""

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
    """Import a large library inside: garbage collection would only search the many objects it makes, and find none.

    With torch as a worker needs it 3.4 -> 3.0 s, with Avalanche 7.3 -> 6.5 s.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
