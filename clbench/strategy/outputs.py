"""Deprecated module: two classes of `clbench.strategy.common_options`, for plugins that import them from here."""

from __future__ import annotations

import warnings

from clbench.core.renamed import REMOVED_IN
from clbench.strategy.common_options import FixedOutputsOptions, OutputsOptions

__all__ = ["FixedOutputsOptions", "OutputsOptions"]
warnings.warn(f"clbench.strategy.outputs is clbench.strategy.common_options now; the old name is to be removed in "
              f"clbench {REMOVED_IN}", DeprecationWarning, stacklevel=2)
