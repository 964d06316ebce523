"""The options of Avalanche's strategies, as in their constructors.

They are written out, because an import of Avalanche takes seconds. A test compares them with the constructors.
Arguments that do not choose the method are left out: the training arguments, which the training configuration sets;
layer names and shapes, which follow from the model; and `verbose`. Lists with a number for each experience, which some
strategies accept, are not supported. `open` names the options without a default in Avalanche.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from clbench import OnlyWith, Options

MEM_SIZE = "buffer size: number of stored samples of all tasks together"


class AvalancheOptions(Options):
    """Base of the options of a strategy; `strategy` is its name."""

    strategy: ClassVar[str]
    open: ClassVar[frozenset[str]] = frozenset()  # options without a default in Avalanche


class NaiveOptions(AvalancheOptions):
    """Options of `Naive`."""

    strategy = "Naive"


class CumulativeOptions(AvalancheOptions):
    """Options of `Cumulative`."""

    strategy = "Cumulative"


class JointTrainingOptions(AvalancheOptions):
    """Options of `JointTraining`."""

    strategy = "JointTraining"


class FromScratchTrainingOptions(AvalancheOptions):
    """Options of `FromScratchTraining`."""

    strategy = "FromScratchTraining"
    reset_optimizer: bool = Field(True, description="reset the optimizer's state (its moments) at each task")


class EWCOptions(AvalancheOptions):
    """Options of `EWC`.

    The default strength corresponds to that of `ewc` at a batch size of 128: half of it, because there is no 1/2 here,
    times the batch size. If the gradients in a batch have no common part, the square of their mean is smaller than the
    mean of their squares by this factor.
    """

    strategy = "EWC"
    open = frozenset({"ewc_lambda"})
    ewc_lambda: float = Field(6.4e6, ge=0, description="weight of the penalty sum F (theta - theta*)^2, without a "
                              "factor 1/2; F: Fisher information")
    mode: Literal["separate", "online"] = Field("separate", description="separate: one penalty for each task; online: "
                                                "one penalty with a decaying sum of importances")
    decay_factor: float | None = Field(None, ge=0, description="factor of the old importances at each new task "
                                       "(mode=online)")
    keep_importance_data: Annotated[bool, OnlyWith("mode", "online")] = Field(
        False, description="store the importances of all earlier tasks in mode=online too")

    @model_validator(mode="after")
    def _decay_goes_with_online(self) -> EWCOptions:
        """Refuse what Avalanche refuses when it is built."""
        if (self.mode == "online") != (self.decay_factor is not None):
            raise ValueError("mode=online needs a decay_factor, and mode=separate has none")
        return self


class LwFOptions(AvalancheOptions):
    """Options of `LwF`; the defaults are those of Avalanche's plugin."""

    strategy = "LwF"
    open = frozenset({"alpha", "temperature"})
    alpha: float = Field(1.0, ge=0, description="weight of the distillation loss")
    temperature: float = Field(2.0, gt=0, description="temperature of the softmax in the distillation loss")


class SynapticIntelligenceOptions(AvalancheOptions):
    """Options of `SynapticIntelligence`; the default strength is that of `si`, whose penalty lacks the 1/2."""

    strategy = "SynapticIntelligence"
    open = frozenset({"si_lambda"})
    si_lambda: float = Field(2.0, ge=0, description="weight of the penalty 1/2 sum Omega (theta - theta*)^2")
    eps: float = Field(1e-7, gt=0, description="damping term, which keeps the importance of weights that hardly moved "
                       "finite")


class MASOptions(AvalancheOptions):
    """Options of `MAS`."""

    strategy = "MAS"
    lambda_reg: float = Field(1.0, ge=0, description="weight of the penalty sum Omega (theta - theta*)^2")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the old importance in its average with a new task's "
                         "importance")


class LFLOptions(AvalancheOptions):
    """Options of `LFL`; the default weight is arbitrary."""

    strategy = "LFL"
    open = frozenset({"lambda_e"})
    lambda_e: float = Field(1.0, ge=0, description="weight of the squared distance between the features of the new and "
                            "the old network")


class ReplayOptions(AvalancheOptions):
    """Options of `Replay`."""

    strategy = "Replay"
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)


class GDumbOptions(AvalancheOptions):
    """Options of `GDumb`."""

    strategy = "GDumb"
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)


class GSSGreedyOptions(AvalancheOptions):
    """Options of `GSS_greedy`."""

    strategy = "GSS_greedy"
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)
    mem_strength: int = Field(1, ge=1, description="number of batches from the buffer whose gradients are compared "
                              "with a new sample's gradient")


class MIROptions(AvalancheOptions):
    """Options of `MIR`; the defaults of mem_size and subsample are those of Avalanche's plugin."""

    strategy = "MIR"
    open = frozenset({"mem_size", "subsample"})
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)
    subsample: int = Field(200, ge=1, description="number of stored samples drawn in each step as candidates for "
                           "replay")
    batch_size_mem: int = Field(1, ge=1, description="samples that are replayed in each step")


class AGEMOptions(AvalancheOptions):
    """Options of `AGEM`; the default memory is that of `a-gem` for five tasks."""

    strategy = "AGEM"
    open = frozenset({"patterns_per_exp"})
    patterns_per_exp: int = Field(40, ge=1, description="buffer size per task: number of stored samples of each task")
    sample_size: int = Field(64, ge=1, description="number of stored samples drawn in each step to compute the "
                             "reference gradient")


class DEROptions(AvalancheOptions):
    """Options of `DER`, which is DER++ if beta is not 0."""

    strategy = "DER"
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)
    batch_size_mem: int | None = Field(None, ge=1, description="samples that are replayed in each step; none: the "
                                       "batch size")
    alpha: float = Field(0.1, ge=0, description="weight of the squared error between current and stored logits")
    beta: float = Field(0.5, ge=0, description="weight of the cross-entropy on replayed samples")


class ERACEOptions(AvalancheOptions):
    """Options of `ER_ACE`."""

    strategy = "ER_ACE"
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)
    batch_size_mem: int = Field(10, ge=1, description="samples that are replayed in each step")


class ERAMLOptions(AvalancheOptions):
    """Options of `ER_AML`."""

    strategy = "ER_AML"
    mem_size: int = Field(200, ge=1, description=MEM_SIZE)
    batch_size_mem: int = Field(10, ge=1, description="samples that are replayed in each step")
    temp: float = Field(0.1, gt=0, description="temperature of the contrastive loss between features")
    base_temp: float = Field(0.07, gt=0, description="base temperature: the contrastive loss is multiplied by temp / "
                             "base_temp")
    same_task_neg: bool = Field(True, description="draw the negative samples of a sample from its own task only")


class FeatureReplayOptions(AvalancheOptions):
    """Options of `FeatureReplay`."""

    strategy = "FeatureReplay"
    mem_size: int = Field(200, ge=1, description="buffer size: number of stored features of all tasks together")
    batch_size_mem: int = Field(10, ge=1, description="features that are replayed in each step")


class GEMOptions(AvalancheOptions):
    """Options of `GEM`; the default memory is that of `a-gem` for five tasks."""

    strategy = "GEM"
    open = frozenset({"patterns_per_exp"})
    patterns_per_exp: int = Field(40, ge=1, description="buffer size per task: number of stored samples of each task")
    memory_strength: float = Field(0.5, ge=0, description="margin of the projection; larger values favor old tasks "
                                   "more")


class CWRStarOptions(AvalancheOptions):
    """Options of `CWRStar`."""

    strategy = "CWRStar"


class PNNStrategyOptions(AvalancheOptions):
    """Options of `PNNStrategy`."""

    strategy = "PNNStrategy"
