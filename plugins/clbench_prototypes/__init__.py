"""`ncm`, `simplecil`, `aper`, `slda`, `ranpac`, `fecam`: analytic classifiers on the features of a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from clbench import OnlyWith, Options, SearchValues, StrategyInfo, hookimpl
from clbench.core.errors import SpecError
from clbench.strategy.common_options import StartOptions

Adapt = Literal["auto", "none", "lora", "bottleneck"]
ADAPT = ("adapters that the first task trains in a pretrained network, together with the head, before the analytic "
         "classifier is fitted. none: no adapters; lora: low-rank adapters (on q and v in a transformer, else on all "
         "layers); bottleneck: bottleneck adapters parallel to the MLPs of a vision transformer (AdaptFormer); auto: "
         "bottleneck in a pretrained vision transformer, else none")


class AdaptOptions(StartOptions):
    """Options for adapting a pretrained network in the first task, before it is frozen permanently."""

    LATER: ClassVar[tuple[str, ...]] = ("adapt", "rank", "both")

    adapt: Adapt = Field("none", description=ADAPT)
    rank: Annotated[int, OnlyWith("adapt", "lora")] = Field(
        4, ge=1, description="rank of the low-rank adapters of adapt = lora")
    both: bool = Field(False, description="concatenate the features of the pretrained and of the adapted network, as "
                       "APER does; this doubles the number of features and of forward passes")

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with `auto` replaced: `bottleneck` if a pretrained network can have it, else `none`.

        Raises:
            SpecError: it becomes `none`, and `both`, which is then without effect, was changed to true.
        """
        options = super().settled(pretrained, network)
        if self.adapt != "auto":
            return options
        if network is not None and getattr(options, "base", "") == "pretrained":
            from clbench_prototypes.first_session import takes_bottlenecks

            if takes_bottlenecks(network()):
                return options.model_copy(update={"adapt": "bottleneck"})
        if self.both and not type(self).model_fields["both"].default:
            raise SpecError("both = true has an effect only with adapters, and adapt = auto puts none into this model; "
                            "add adapt = lora, or leave both out")
        return options.model_copy(update={"adapt": "none", "both": False})

    @property
    def needs_boundaries(self) -> str:
        """Return why the end of the first task must be known: its adapters are trained in that task only."""
        trains = self.adapt in ("lora", "bottleneck")
        return f"adapt = {self.adapt} trains in the first task" if trains else super().needs_boundaries

    @property
    def trained_by_steps(self) -> bool:
        """Return whether the first task trains something."""
        return self.base == "task1" or self.adapt != "none"

    @model_validator(mode="after")
    def _adapts(self) -> AdaptOptions:
        """Reject `both` without adapters, even if it is the default."""
        if self.adapt == "none" and self.both:
            raise ValueError("both is of the adapters of adapt = lora or bottleneck; add one of them, or choose both = "
                             "false")
        return self


class NCMOptions(AdaptOptions):
    """Options of `ncm`."""

    normalize: bool = Field(False, description="scale features, and their means, to length 1, as iCaRL does")


class SimpleCILOptions(AdaptOptions):
    """Options of `simplecil`."""


class APEROptions(SimpleCILOptions):
    """Options of `aper`; the defaults are those of the authors' code with AdaptFormer."""

    adapt: Adapt = Field("auto", description=ADAPT)
    both: bool = Field(True, description=AdaptOptions.model_fields["both"].description)


class SLDAOptions(AdaptOptions):
    """Options of `slda`; the default is the paper's."""

    shrinkage: Annotated[float, SearchValues(1e-4, 1e-3, 1e-2, 1e-1)] = Field(
        1e-4, gt=0, le=1, description="epsilon: shrinkage of the covariance S to (1 - epsilon) S + epsilon I before it "
        "is inverted")


class RanPACOptions(AdaptOptions):
    """Options of `ranpac`."""

    LATER: ClassVar[tuple[str, ...]] = (*AdaptOptions.LATER, "ridge")
    BEFORE: ClassVar[Mapping[str, Any]] = {"adapt": "none"}

    adapt: Adapt = Field("auto", description=ADAPT)
    projections: int | None = Field(None, ge=0, description="M: number of random features. none: 10000 as in the paper "
                                    "if the network has 768 features or more, else 5 for each feature; 0: no random "
                                    "projection")
    ridge: Annotated[float | None, SearchValues("none", 1e2, 1e4, 1e6)] = Field(
        None, gt=0, description="r: strength of the ridge penalty in all tasks. none: chosen again in each task, as in "
        "the paper: of the powers of ten from 10^-8 to 10^8, the one with the smallest error on a fifth of the task's "
        "training samples when it is fitted to the others. This choice can be far off if tasks are small")


class FeCAMOptions(AdaptOptions):
    """Options of `fecam`; the defaults are the paper's, and those of the authors' code for vision transformers.

    The authors' code for CIFAR-100 shrinks twice, which corresponds to `alpha1=3:alpha2=3` here.
    """

    covariance: Literal["class", "common"] = Field("class", description="number of covariance matrices. class: one for "
                                                   "each class; common: one for all classes")
    tukey: float | None = Field(None, gt=0, le=1, description="lambda: power of Tukey's transformation, which the "
                                "magnitude of each feature is raised to; signs are kept. 1: no power, but feature "
                                "vectors are scaled to length 1; none: 0.5, or 1 for a network that predicts from a "
                                "class token and for encoders of texts, whose features can be negative. Give 1 for "
                                "other transformers, such as Swin")
    alpha1: float = Field(1.0, gt=0, description="shrinkage: weight of the mean variance that is added to the diagonal "
                          "of the covariance")
    alpha2: float | None = Field(None, ge=0, description="shrinkage: weight of the mean covariance of two features "
                                 "that is added off the diagonal, at most alpha1. none: alpha1, or 0 where tukey is 1 "
                                 "by default. Give 0 for other transformers")

    @model_validator(mode="after")
    def _stays_positive(self) -> FeCAMOptions:
        """Reject a shrinkage whose result may not be a covariance matrix."""
        if self.alpha2 is not None and self.alpha2 > self.alpha1:
            raise ValueError(f"alpha2 = {self.alpha2:g} is above alpha1 = {self.alpha1:g}; the sum may then have "
                             "negative variances, so choose alpha2 <= alpha1")
        return self


FIRST_SESSION: Mapping[str, Any] = {  # training configuration of RanPAC and APER
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine",
    "schedule_by": "epoch", "head_decay": "learning"}


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies."""
    return (
        StrategyInfo("ncm", "clbench_prototypes.ncm:NCM",
                     "classifies frozen features by the nearest class mean",
                     NCMOptions, "Mensink et al. 2013, TPAMI 35(11); Janson et al. 2022, arXiv 2210.04428",
                     task_free=True, display_name="NCM", family="analytic classifiers"),
        StrategyInfo("simplecil", "clbench_prototypes.simplecil:SimpleCIL",
                     "classifies frozen features by their cosine with class means",
                     SimpleCILOptions, "Zhou et al. 2023, arXiv 2303.07338", task_free=True,
                     recipe=FIRST_SESSION, display_name="SimpleCIL", family="analytic classifiers"),
        StrategyInfo("aper", "clbench_prototypes.simplecil:APER",
                     "classifies pretrained and adapted features by cosines with class means", APEROptions,
                     "Zhou et al. 2023, arXiv 2303.07338", recipe=FIRST_SESSION,
                     budget={"epochs": 20, "batch_size": 48, "samples": 2500}, display_name="APER",
                     family="analytic classifiers"),
        StrategyInfo("slda", "clbench_prototypes.slda:SLDA",
                     "classifies frozen features by linear discriminant analysis, updated online",
                     SLDAOptions, "Hayes & Kanan 2020, arXiv 1909.01520", task_free=True, display_name="SLDA",
                     family="analytic classifiers"),
        StrategyInfo("ranpac", "clbench_prototypes.ranpac:RanPAC",
                     "fits ridge regression on random nonlinear projections of frozen features", RanPACOptions,
                     "McDonnell et al. 2023, arXiv 2307.02251", recipe=FIRST_SESSION,
                     budget={"epochs": 20, "batch_size": 48, "samples": 5000}, display_name="RanPAC",
                     family="analytic classifiers"),
        StrategyInfo("fecam", "clbench_prototypes.fecam:FeCAM",
                     "classifies frozen features by Mahalanobis distances to class means", FeCAMOptions,
                     "Goswami et al. 2023, arXiv 2309.14062", display_name="FeCAM", family="analytic classifiers"),
    )
