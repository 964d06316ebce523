"""For authors of methods: the rules of the interface as checks, and a tiny stream to try a method on.

The names are imported when first used, since pytest loads the fixtures of `clbench.testing.pytest_plugin` everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.testing.checks import CHECKS, check, suggest
    from clbench.testing.tiny import MODELS, Bench, NonConforming, bench, tiny_stream

__all__ = ["CHECKS", "MODELS", "Bench", "NonConforming", "bench", "check", "suggest", "tiny_stream"]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.testing.checks": ("CHECKS", "check", "suggest"),
    "clbench.testing.tiny": ("MODELS", "Bench", "NonConforming", "bench", "tiny_stream"),
})
