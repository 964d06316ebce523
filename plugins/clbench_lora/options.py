"""Options of `lora` and of its variants with shared adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from clbench import OnlyWith, Options, Scalar
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import (
    MEANING,
    AlignOptions,
    BaseOptions,
    Criterion,
    FixedOutputsOptions,
    OutputsOptions,
    OwnOutputsOptions,
    StartOptions,
)

Init = Literal["kaiming", "gaussian", "pissa"]
Target = Literal["q", "k", "v", "proj", "mlp", "all-linear"]
ALL_LINEAR: Target = "all-linear"
Magnitudes = Literal["shared", "layer"]
Norm = Literal["factors", "product"]


class LowRankOptions(Options):
    """Options for the adapted layers and for the rank and scale of their adapters."""

    LATER: ClassVar[tuple[str, ...]] = ("targets",)
    PAPER: ClassVar[tuple[Target, ...]] = ("q", "v")  # the parts of a transformer that the method's paper adapts

    rank: int = Field(4, ge=1, description="rank r of the adapters. A rank above the smaller of the input and output "
                      "sizes of a layer is refused (the input size of a Conv2d is channels * kernel height * width)")
    rank_pattern: dict[str, int] = Field({}, description="ranks of individual layers, by a regular expression that "
                                         "matches the whole layer name, as in {'blocks\\.0\\..*' = 2} (TOML)")
    alpha: float | None = Field(None, gt=0, description="scale of the adapters (PEFT's lora_alpha): their output is "
                                "multiplied by alpha / rank; none: alpha = rank")
    scaling: Literal["standard", "rslora"] = Field("standard", description="factor of the adapters' output. standard: "
                                                   "alpha / rank; rslora: alpha / sqrt(rank) (rank-stabilized: "
                                                   "Kalajdzievski 2023)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of the adapters' inputs in training")
    layers: str = Field("all", min_length=1, description="which Linear and Conv2d layers of the blocks have adapters. "
                        "all: every layer that can have one; last: the last layer before the head; last:N: the last N "
                        "layers; blocks:N: the layers of the last N blocks; attention: the q, k, v and output "
                        "projections; otherwise a regular expression that matches whole layer names, such as "
                        "'blocks\\.1\\..*'")
    targets: list[Target] = Field([], description="restrict layers to parts of transformer blocks: any of q, k, v, "
                                  "proj (output projection) and mlp, as in q+v (a list in TOML), or all-linear for all "
                                  "Linear layers. If one layer computes q, k and v, each of them that is named here "
                                  "has its own adapter; if none is named, the layer has a single one. If neither "
                                  "layers nor targets is given, a pretrained transformer has adapters on the layers "
                                  "that the method's paper adapts, not on all (docs/adapters.md)")
    deciding: ClassVar[frozenset[str]] = frozenset({"layers"})  # if given, even as all, the paper's targets are unused

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options, with the paper's targets if no layers are chosen and the network has such parts."""
        options = super().settled(pretrained, network)
        if network is None or {"layers", "targets"} & self.model_fields_set:
            return options
        from clbench_lora.selection import has_parts

        return options.model_copy(update={"targets": list(self.PAPER)}) if has_parts(network(), self.PAPER) else options

    @field_validator("layers")
    @classmethod
    def _compiles(cls, layers: str) -> str:
        """Reject strings that are not regular expressions."""
        try:
            re.compile(layers)
        except re.error as error:
            raise ValueError(f"{layers!r} is not a regular expression: {error}") from None
        return layers

    @field_validator("targets")
    @classmethod
    def _in_order(cls, targets: list[Target]) -> list[Target]:
        """Sort the targets and remove duplicates, so that q+v and v+q are the same trial."""
        if ALL_LINEAR in targets and {*targets} != {ALL_LINEAR}:
            raise ValueError("all-linear has the other targets in it; name it alone")
        return [target for target in get_args(Target) if target in targets]

    @model_validator(mode="after")
    def _has_targets(self) -> LowRankOptions:
        """Reject the target mlp for `layers = attention`, because attention has no mlp."""
        if self.layers == "attention" and "mlp" in self.targets:
            raise ValueError("layers = attention has q, k, v and proj, not mlp; leave layers out, or mlp")
        return self

    @field_validator("rank_pattern")
    @classmethod
    def _ranks(cls, patterns: dict[str, int]) -> dict[str, int]:
        """Reject patterns that are not regular expressions, and ranks below 1."""
        for pattern, rank in patterns.items():
            cls._compiles(pattern)
            if rank < 1:
                raise ValueError(f"the rank of {pattern!r} should be at least 1, got {rank}")
        return patterns


class AdapterOptions(LowRankOptions):
    """Options for the adapted layers and for the form of their adapters."""

    init: Init = Field("kaiming", description="initialization of A and B. kaiming: A Kaiming-uniform as in PEFT, B "
                       "zero; gaussian: A Gaussian, B zero; pissa: both from the largest singular values of W (Meng et "
                       "al. 2024; Linear layers only)")
    bias: bool = Field(False, description="give B a bias (PEFT's lora_bias), multiplied by the same factor as the "
                       "adapter's output")
    dora: bool = Field(False, description="learn the length of each row of W + BA separately from its direction (DoRA: "
                       "Liu et al. 2024)")

    @model_validator(mode="after")
    def _goes_with_dora(self) -> AdapterOptions:
        """Reject dora with pissa or with a bias, because nobody has defined these combinations."""
        if self.dora and self.init == "pissa":
            raise ValueError("dora goes with init = kaiming or gaussian, not with pissa")
        if self.dora and self.bias:
            raise ValueError("dora does not go with bias = true; choose one of them")
        return self


class LoRAOptions(AdapterOptions, BaseOptions):
    """Options of `lora`."""


class SummedOptions(LowRankOptions, StartOptions):
    """Common options of the methods that sum their adapters."""

    LATER: ClassVar[tuple[str, ...]] = ("head_rate",)

    head_rate: float = Field(1.0, gt=0, description="learning rate of the head or heads, as a multiple of the "
                             "configured learning rate")


class SeqLoRAOptions(OwnOutputsOptions, AlignOptions, AdapterOptions, SummedOptions):
    """Options of `seq-lora`."""

    LATER: ClassVar[tuple[str, ...]] = ("merge", "replay", "capacity")

    merge: bool = Field(False, description="merge the adapter into W after each task, and train a new adapter in the "
                        "next task")
    replay: float = Field(0.0, ge=0, description="samples of earlier tasks that are replayed for each new sample, in "
                          "addition to it; with B new samples, step i (from 0) replays floor((i + 1) B replay) - "
                          "floor(i B replay)")
    capacity: Annotated[int, OnlyWith("replay")] = Field(
        200, ge=1, description="buffer size: number of samples stored for replay, for all tasks together")

    @property
    def needs_boundaries(self) -> str:
        """Return why boundaries must be known: with `merge = true`, the adapter is merged after each task."""
        return "merge = true merges the adapter after each task" if self.merge else super().needs_boundaries


class OLoRAOptions(OwnOutputsOptions, AlignOptions, SummedOptions):
    """Options of `o-lora`; the default adapters and penalty weight are those of its reference code."""

    rank: int = Field(8, ge=1, description=LowRankOptions.model_fields["rank"].description)
    alpha: float | None = Field(32.0, gt=0, description=LowRankOptions.model_fields["alpha"].description)
    dropout: float = Field(0.1, ge=0, lt=1, description=f"{LowRankOptions.model_fields['dropout'].description}. "
                           "Trials with dropout train one at a time; trials with dropout = 0 can be vectorized")
    lambda_orth: Scalar = Field(0.5, ge=0, description="weight of the orthogonality penalty, the sum of |A_i A_t^T| "
                                "over the earlier tasks i")


class InfLoRAOptions(OutputsOptions, AlignOptions, SummedOptions):
    """Options of `inflora`; the default criterion and thresholds are those of its reference code's CIFAR-100 runs."""

    LATER: ClassVar[tuple[str, ...]] = ("design",)
    PAPER: ClassVar[tuple[Target, ...]] = ("k", "v")
    BEFORE: ClassVar[Mapping[str, Any]] = {"criterion": "inputs"}

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    alpha: float | Literal["auto"] | None = Field(  # type: ignore[assignment]  # `settled` replaces auto
        "auto", description=f"{LowRankOptions.model_fields['alpha'].description}; auto: the alpha that multiplies "
        "the output by 1 / sqrt(3), as in the authors' code: rank / sqrt(3), with rslora sqrt(rank / 3)")
    threshold: float = Field(0.95, gt=0, le=1, description="share of the energy of a layer's inputs (see criterion) "
                             "that the subspace stored for earlier tasks contains after the first task")
    final_threshold: float = Field(1.0, gt=0, le=1, description="value toward which threshold rises linearly: after "
                                   "task t (from 0) of T, it has covered t / T of the difference")
    criterion: Criterion = Field("moment", description="energy that threshold refers to. moment: squared singular "
                                 "values of the inputs' second moment X X^T, which leads to a small subspace (the "
                                 "authors' code); inputs: squared singular values of the inputs X (the paper)")
    design: Criterion = Field("inputs", description="matrix whose strongest directions outside the subspace of earlier "
                              "tasks become the rows of A. inputs: the inputs X (the paper); moment: their second "
                              "moment X X^T (the authors' code)")

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with `auto` replaced by an alpha that corresponds to the authors' length of A's rows."""
        options = super().settled(pretrained, network)
        if self.alpha != "auto":
            return options
        factor = math.sqrt(self.rank) if self.scaling == "rslora" else self.rank
        return options.model_copy(update={"alpha": factor / math.sqrt(3)})

    @field_validator("alpha")
    @classmethod
    def _is_positive(cls, alpha: float | str | None) -> float | str | None:
        """Reject a scale of 0 or below."""
        if isinstance(alpha, float) and not alpha > 0:
            raise ValueError(f"should be greater than 0, got {alpha:g}")
        return alpha

    @model_validator(mode="after")
    def _fits(self) -> InfLoRAOptions:
        """Reject a final threshold below the first one, and `auto` with several ranks, which no alpha fits."""
        if self.alpha == "auto" and self.rank_pattern:
            raise ValueError("alpha = auto is for one rank; with rank_pattern, choose alpha (none: alpha = rank)")
        if self.final_threshold < self.threshold:
            raise ValueError(f"final_threshold = {self.final_threshold:g} is below threshold = {self.threshold:g}; it "
                             "should be at least that")
        return self


class SDLoRAOptions(OutputsOptions, SummedOptions):
    """Options of `sd-lora`; the defaults are those of its reference code's CIFAR-100 runs."""

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    later_ranks: dict[str, int] = Field({}, description="lower ranks of later tasks (SD-LoRA-RR): maps a task's number "
                                        "(from 1) to the rank from that task on, as in {5 = 8, 9 = 6} (TOML). A layer "
                                        "whose rank is already lower keeps it. The factor of the output stays that of "
                                        "rank")
    magnitude: float = Field(0.8, gt=0, description="initial magnitude of a new direction; with magnitudes = shared, "
                             "each task also resets the magnitudes of earlier directions to it")
    magnitudes: Magnitudes = Field("shared", description="how magnitudes are shared between layers. shared: one per "
                                   "task for all layers; each task resets all of them (the authors' code). layer: one "
                                   "per task and layer, trained further without a reset, so that the network's output "
                                   "does not change when a task begins")
    norm: Norm = Field("factors", description="Frobenius norm that an earlier direction is divided by. factors: |B| "
                       "|A| (the authors' code); product: |BA| (the paper)")

    @field_validator("later_ranks")
    @classmethod
    def _fall(cls, ranks: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        """Reject invalid task numbers, and ranks that are not below the earlier rank. Sort by task."""
        for task, rank in ranks.items():
            if not task.isdecimal() or int(task) < 1 or rank < 1:
                raise ValueError(f"{task!r} = {rank} should be the number of a task, 1 or more, and a rank of at least "
                                 "1")
        by_task = {str(task): ranks[name] for task, name in sorted((int(name), name) for name in ranks)}
        earlier = max(info.data.get("rank", math.inf), *info.data.get("rank_pattern", {}).values(), 0)
        for task, rank in by_task.items():
            if rank >= earlier:
                raise ValueError(f"rank {rank} from task {task} on is not below the earlier rank {earlier}; choose "
                                 "lower ranks for later tasks")
            earlier = rank
        return by_task


class LoRASubOptions(OutputsOptions, SummedOptions):
    """Options of `lora-sub`; the defaults are those of its reference code's CIFAR-100 runs."""

    PAPER: ClassVar[tuple[Target, ...]] = ("k", "v")

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    threshold: float = Field(0.99, gt=0, le=1, description="share of the energy of a layer's inputs that the "
                             "drift-resistant space contains; adapters of later tasks change only within this space")
    scaled: bool = Field(True, description="divide the projector onto the drift-resistant space by its Frobenius norm "
                         "(the authors' code), which divides steps by the square root of the space's dimension")
    project_b: bool = Field(True, description="project the changes of B too, in layers with as many outputs as inputs "
                            "(the authors' code, which adapts only layers of this kind); false: project only the "
                            "changes of A")
    strength: Scalar = Field(0.05, ge=0, description="lambda: weight of the triplet loss")
    margin: Annotated[Scalar, OnlyWith("strength")] = Field(
        1.0, ge=0, description="margin of the triplet loss: how much closer the farthest sample of the same class "
        "should be than the nearest sample of another class")


class EWCLoRAOptions(OutputsOptions, AlignOptions, SummedOptions):
    """Options of `ewc-lora`; the defaults are those of its reference code's CIFAR-100 run (ewc_lora.py)."""

    PAPER: ClassVar[tuple[Target, ...]] = ("k", "v")

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    strength: Scalar = Field(1e7 / 128, ge=0, description="lambda: weight of the penalty lambda/2 sum F (s B A)^2 on "
                             "the task's change s B A of W, with Fisher information F")
    gamma: Scalar = Field(1.0, ge=0, le=1, description="factor by which the Fisher information of earlier tasks is "
                          "multiplied when a new task's is added")
    fisher: Literal["exact", "sampled", "empirical", "predicted"] = Field(
        "empirical", description="labels that the Fisher information is computed with. exact: all labels, weighted by "
        "the model's probabilities; sampled: one label drawn from them; empirical: the true label; predicted: the most "
        "probable label")
    fisher_samples: int | None = Field(None, ge=1, description="number of samples per task for the Fisher information; "
                                       "none: all")


class LoRAMeanOptions(FixedOutputsOptions, SummedOptions):
    """Options of `lora-mean`."""

    fixed_outputs: ClassVar[Outputs] = "own"  # each task trains its own head, which has only the task's classes
