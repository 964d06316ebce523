"""The one place where Avalanche is first imported, and where the chatter of data libraries is kept off stdout."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator

from clbench.compat import uncollected


def import_avalanche() -> None:
    """Import Avalanche's benchmarks without the warnings that its import raises (absent QP solvers, deprecations)."""
    with warnings.catch_warnings(), chatter_to_stderr(), uncollected():
        warnings.simplefilter("ignore")
        importlib.import_module("avalanche.benchmarks.classic")


@contextlib.contextmanager
def chatter_to_stderr() -> Iterator[None]:
    """Send what is printed inside to stderr: stdout belongs to the tables."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
