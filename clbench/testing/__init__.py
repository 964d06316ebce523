"""Tools for authors of methods: conformance checks of the interface, and a tiny stream on which to test a method.

Names are imported when they are first used, because pytest loads `clbench.testing.pytest_plugin` wherever clbench is
installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.testing.checks import CHECKS, check, describe, suggest
    from clbench.testing.tiny import MODELS, Bench, NonConforming, bench, tiny_stream

__all__ = ["CHECKS", "MODELS", "Bench", "NonConforming", "bench", "check", "describe", "suggest", "tiny_stream"]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.testing.checks": ("CHECKS", "check", "describe", "suggest"),
    "clbench.testing.tiny": ("MODELS", "Bench", "NonConforming", "bench", "tiny_stream"),
})
