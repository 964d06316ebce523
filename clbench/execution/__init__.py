"""Running experiments. The process that manages the workers never imports torch."""

from clbench.core.entry_points import lazy

__getattr__, __dir__ = lazy(__name__, {})  # old names, until 0.3
