"""`xdg`: context-dependent gating (Masse, Grant & Freedman 2018, arXiv 1802.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from clbench_si import SIOptions
from pydantic import Field, model_validator

from clbench import Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.strategy.common_options import InferOptions


class XdGOptions(InferOptions, SIOptions):
    """Options of `xdg`; the defaults are the authors' for 100 permutations of MNIST, with SI."""

    gated: float = Field(0.8, ge=0, lt=1, description="share of each hidden layer's units that is switched off in a "
                         "task, chosen at random; at least one unit stays on")
    strength: Annotated[Scalar, SearchValues(0.0, 0.035, 0.1, 1.0, 10.0)] = Field(
        0.035, ge=0, description="c: weight of the penalty of si, c sum Omega (theta - theta*)^2, on all layers except "
        "the heads; 0: gates without a penalty")
    damping: Scalar = Field(1e-2, gt=0, description="xi of si: keeps the importance of weights that hardly move "
                            "finite")
    infer: Literal["entropy", "max-logit"] = Field(
        "entropy", description="how the task of a test sample is inferred if its ID is not given. entropy: the task "
        "whose head has the lowest entropy; max-logit: the task whose head has the largest logit")

    @model_validator(mode="after")
    def _has_heads(self) -> XdGOptions:
        """Reject `outputs`, which si has and a method with a head for each task does not read."""
        if self.outputs != "seen":
            raise ValueError(f"outputs = {self.outputs} has no effect, because each task has a head of its own; leave "
                             "it out")
        return self


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("xdg", "clbench_xdg.strategy:XdG",
                         "switches off a random share of units in each task; adds the penalty of si",
                         XdGOptions, "Masse et al. 2018, arXiv 1802.01569", parts_per_task=True, display_name="XdG",
                         recipe={"optimizer": "adam", "lr": 1e-3}, family="parameter isolation"),)
