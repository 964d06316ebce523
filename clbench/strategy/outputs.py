"""Which outputs compete in training: options that strategies have in common; no torch, so that listing is quick."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from clbench.core.options import Options
from clbench.core.scenario import Outputs

MEANING = ("in scenario class, the outputs among which the label of a new sample competes in training: of all classes "
           "so far (seen), of the task at hand (own), or of the whole stream (all). With own, replayed samples compete "
           "among all so far")


class OutputsOptions(Options):
    """The choice of outputs; a strategy whose paper has another one redeclares the field with that default."""

    LATER: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: Outputs = Field("seen", description=MEANING)

    @property
    def needs_boundaries(self) -> str:
        """Return that the classes of the task at hand are those of a task."""
        return ("outputs = own are those of the task at hand; choose outputs = seen" if self.outputs == "own"
                else super().needs_boundaries)


class FixedOutputsOptions(Options):
    """The same for a method whose loss says itself what competes: another value is an error."""

    LATER: ClassVar[tuple[str, ...]] = ("outputs",)

    outputs: Outputs | None = Field(
        None, description="what the method's loss fixes, or none; see docs/fair-comparison.md")

    @property
    def fixed_outputs(self) -> Outputs:
        """Return the outputs among which new samples compete."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _is_fixed(self) -> FixedOutputsOptions:
        """Refuse another choice."""
        if self.outputs not in (None, self.fixed_outputs):
            raise ValueError(f"outputs = {self.outputs}, but the loss fixes outputs = {self.fixed_outputs}; leave it "
                             "out")
        object.__setattr__(self, "outputs", None)  # so that it is the same trial
        return self
