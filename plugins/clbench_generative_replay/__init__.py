"""`generative-replay`: deep generative replay (Shin et al. 2017, arXiv 1705.08690), with a variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from clbench import OnlyWith, Scalar, StrategyInfo, hookimpl
from clbench.strategy.common_options import OutputsOptions


class GenerativeReplayOptions(OutputsOptions):
    """Options of `generative-replay`; the defaults are those of van de Ven's code."""

    targets: Literal["hard", "soft"] = Field(
        "hard", description="labels of generated inputs. hard: the class that the previous network predicts; soft: the "
        "probabilities that it predicts (distillation)")
    temperature: Annotated[Scalar, OnlyWith("targets", "soft")] = Field(
        2.0, gt=0, description="T: temperature that softens old and new probabilities (targets=soft)")
    soft_loss: Annotated[Literal["sum", "scaled-mean"], OnlyWith("targets", "soft")] = Field(
        "sum", description="how the loss is reduced over the outputs (targets=soft). sum: their sum; scaled-mean: T^2 "
        "times their mean, as in van de Ven's code until May 2019 and in results published with it")
    width: int = Field(400, ge=1, description="units of each hidden layer of the generator")
    depth: int = Field(2, ge=1, description="number of hidden layers in the generator's encoder, and in its decoder")
    latent: int = Field(100, ge=1, description="dimensions of the generator's latent space")
    generator_lr: float | None = Field(None, gt=0, description="learning rate of the generator; none: the configured "
                                       "learning rate")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("generative-replay", "clbench_generative_replay.strategy:GenerativeReplay",
                         "replays inputs that a generator makes and the old network labels",
                         GenerativeReplayOptions,
                         "Shin et al. 2017, arXiv 1705.08690; van de Ven & Tolias 2019, arXiv 1904.07734",
                         recipe={"optimizer": "adam", "lr": 1e-3, "optimizer_state": "keep"},
                         budget={"epochs": 21, "batch_size": 128, "samples": 12000}, from_scratch=True,
                         display_name="Generative replay", family="replay"),)
