"""`l2p`: learning to prompt (Wang et al. 2022, arXiv 2112.08654)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import MEANING, OutputsOptions, StartOptions


class L2POptions(OutputsOptions, StartOptions):
    """Options of `l2p`; the defaults are the paper's for Split-CIFAR-100."""

    pool: int = Field(10, ge=1, description="M: prompts in the pool")
    length: int = Field(5, ge=1, description="L_p: tokens of a prompt")
    top: int = Field(5, ge=1, description="N: prompts that a sample is given, those whose keys are most like it")
    outputs: Outputs = Field("own", description=MEANING)
    pull: Scalar = Field(0.5, ge=0, description="lambda: weight of the loss that draws chosen keys to their samples")

    @model_validator(mode="after")
    def _enough(self) -> L2POptions:
        """Refuse to choose more prompts than there are."""
        if self.top > self.pool:
            raise ValueError(f"top = {self.top} prompts cannot be chosen from a pool of {self.pool}")
        return self


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("l2p", "clbench_l2p.strategy:L2P",
                         "selects prompts for each sample from a pool, in a frozen vision transformer", L2POptions,
                         "Wang et al. 2022, arXiv 2112.08654", check_model="vit",
                         recipe={"optimizer": "adam", "lr": 0.03, "lr_per": 256, "max_grad_norm": 1.0},
                         budget={"epochs": 5, "batch_size": 128, "samples": 5000}, task_free=True,
                         display_name="L2P", family="adapters and prompts"),)
