"""Options of strategies that keep herded exemplars; no torch, so that listing them is quick."""

from __future__ import annotations

from pydantic import Field

from clbench.core.options import Options


class ExemplarOptions(Options):
    """How many exemplars there are."""

    capacity: int = Field(200, ge=1, description="K: exemplars for all classes together, at least one for each class")
