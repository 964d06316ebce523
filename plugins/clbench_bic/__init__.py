"""`bic`: bias correction (Wu et al. 2019, arXiv 1905.13260)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clbench import Scalar, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import ExemplarOptions, FixedOutputsOptions


class BiCOptions(FixedOutputsOptions, ExemplarOptions):
    """Options of `bic`; the defaults are the paper's, except the share, which does not occur in the paper."""

    temperature: Scalar = Field(2.0, gt=0, description="T: temperature that softens old and new outputs in the "
                                "distillation loss")
    validation: float = Field(0.1, gt=0, le=0.5, description="fraction of each class's share of the buffer that is "
                              "held out from training to fit the correction; at least one sample")
    correction_steps: float = Field(0.2, gt=0, lt=1, description="fraction of a task's training steps that fit the "
                                    "correction")
    correction_lr: float = Field(0.1, gt=0, description="learning rate of the correction's two parameters, instead of "
                                 "the configured learning rate; their scale does not depend on the network")

    # Labels compete among all classes so far, which causes the bias that is corrected.
    fixed_outputs: ClassVar[Outputs] = "seen"


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("bic", "clbench_bic.strategy:BiC",
                         "replays and distills, then rescales and shifts the logits of new classes", BiCOptions,
                         "Wu et al. 2019, arXiv 1905.13260", display_name="BiC ({capacity})", family="distillation"),)
