"""Options of classifier alignment (`clbench.strategy.alignment`); no torch, so that listing them is quick."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from clbench.core.options import Options

ALIGN = ("in scenario class, train the head alone after each task but the first, on features drawn from a Gaussian of "
         "each class so far; in task and domain it changes nothing")


class AlignOptions(Options):
    """Whether and how the head is realigned; a strategy whose paper does so redeclares `align` with that default.

    The other defaults are those of the authors' code (SLCA).
    """

    LATER: ClassVar[tuple[str, ...]] = ("align", "align_epochs", "align_samples", "align_lr", "align_temperature",
                                        "align_shrink")

    align: bool = Field(False, description=ALIGN)
    align_epochs: int = Field(5, ge=1, description="how often features are drawn; each time there is a step for each "
                              "class so far")
    align_samples: int = Field(256, ge=1, description="features drawn for each class each time; also those in a step's "
                               "batch")
    align_lr: float = Field(0.01, gt=0, description="learning rate of these steps (SGD), which falls along a cosine")
    align_temperature: float | None = Field(0.1, gt=0, description="what normalised logits are divided by; none: "
                                            "logits are not normalised")
    align_shrink: float = Field(0.9, gt=0, le=1, description="factor of class means where the past is infinitely long; "
                                "after t tasks those of task i have shrink + (1 - shrink) i / t")

    @property
    def needs_boundaries(self) -> str:
        """Return that the head is realigned after each task."""
        return "align = true realigns the head after each task" if self.align else super().needs_boundaries
