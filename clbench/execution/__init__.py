"""Execution: an experiment carried out. The process that leads the workers never imports torch."""

from clbench.core.lazy import lazy

__getattr__, __dir__ = lazy(__name__, {})  # old names, until 0.3
