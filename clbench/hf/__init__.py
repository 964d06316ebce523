"""Tools for Hugging Face's `Trainer`: measure what a language model forgets, and replay samples of old tasks.

The names are imported when first used, so that replay needs neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.hf.callback import ForgettingCallback
    from clbench.hf.replay import replay_mix

__all__ = ["ForgettingCallback", "replay_mix"]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.hf.callback": ("ForgettingCallback",),
    "clbench.hf.replay": ("replay_mix",),
})
