"""Options of `lora` and of its variants with shared adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from clbench import Options, Scalar
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import (
    MEANING,
    AlignOptions,
    BaseOptions,
    FixedOutputsOptions,
    OutputsOptions,
    OwnOutputsOptions,
    StartOptions,
)

Init = Literal["kaiming", "gaussian", "pissa"]
Criterion = Literal["moment", "inputs"]
Target = Literal["q", "k", "v", "proj", "mlp", "all-linear"]
ALL_LINEAR: Target = "all-linear"
Magnitudes = Literal["shared", "layer"]
Norm = Literal["factors", "product"]


class LowRankOptions(Options):
    """Options for the adapted layers and for the rank and scale of their adapters."""

    LATER: ClassVar[tuple[str, ...]] = ("targets",)
    PAPER: ClassVar[tuple[Target, ...]] = ("q", "v")  # the parts of a transformer that the method's paper adapts

    rank: int = Field(4, ge=1, description="rank r of the adapters; at most the width of every layer they are on")
    rank_pattern: dict[str, int] = Field({}, description="other ranks for layers whose whole name a regular expression "
                                         "fits, as in {'blocks\\.0\\..*' = 2} (TOML)")
    alpha: float | None = Field(None, gt=0, description="scale: an adapter's output is multiplied by alpha / rank; "
                                "none means rank, a factor of 1")
    scaling: Literal["standard", "rslora"] = Field(
        "standard", description="alpha / rank, or alpha / sqrt(rank) (rank-stabilized: Kalajdzievski 2023)")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapters' inputs zeroed in training")
    layers: str = Field("all", min_length=1, description="which Linear and Conv2d layers of the blocks are adapted: "
                        "all (that can be) | last | last:N (the last N layers) | blocks:N (those of the last N "
                        "blocks) | attention (its q, k, v, proj) | a regular expression that fits whole names, such as "
                        "'blocks\\.1\\..*'")
    targets: list[Target] = Field([], description="of these layers only the named parts of transformer blocks: any of "
                                  "q, k, v, proj and mlp, as in q+v (a list in TOML); one layer for q, k and v (qkv) "
                                  "gets adapters for each part apart; all-linear means all Linear layers. Without it "
                                  "and layers, a pretrained transformer has adapters where the method's paper has them "
                                  "(docs/adapters.md)")
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

    init: Init = Field("kaiming", description="A Kaiming-uniform (PEFT's) or Gaussian, with B zero; or both from the "
                       "largest singular values of W (pissa: Meng et al. 2024; Linear layers only)")
    bias: bool = Field(False, description="give B a bias (PEFT's lora_bias), scaled as the adapter is")
    dora: bool = Field(False, description="learn the length of each row of W + BA apart (Liu et al. 2024)")

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

    head_rate: float = Field(1.0, gt=0, description="what multiplies the recipe's learning rate for the head, or heads")


class SeqLoRAOptions(OwnOutputsOptions, AlignOptions, AdapterOptions, SummedOptions):
    """Options of `seq-lora`."""

    LATER: ClassVar[tuple[str, ...]] = ("merge", "replay", "capacity")

    merge: bool = Field(False, description="add the adapter to W after each task, and start a new one")
    replay: float = Field(0.0, ge=0, description="samples of earlier tasks that are replayed in addition to each new "
                          "one; with B new ones, step i (from 0) replays floor((i + 1) B replay) - floor(i B replay)")
    capacity: int = Field(200, ge=1, description="samples in the memory that are replayed, for all tasks together")

    @model_validator(mode="after")
    def _is_used(self) -> SeqLoRAOptions:
        """Reject a capacity if nothing is replayed."""
        if self.capacity != type(self).model_fields["capacity"].default and not self.replay:
            raise ValueError(f"capacity = {self.capacity} is of a memory, and replay = 0 needs none; leave it out")
        return self

    @property
    def needs_boundaries(self) -> str:
        """Return why boundaries must be known: with `merge = true`, the adapter is merged after each task."""
        return "merge = true merges the adapter after each task" if self.merge else super().needs_boundaries


class OLoRAOptions(OwnOutputsOptions, AlignOptions, SummedOptions):
    """Options of `o-lora`; the default adapters and penalty weight are those of its reference code."""

    rank: int = Field(8, ge=1, description=LowRankOptions.model_fields["rank"].description)
    alpha: float | None = Field(32.0, gt=0, description=LowRankOptions.model_fields["alpha"].description)
    dropout: float = Field(0.1, ge=0, lt=1, description=f"{LowRankOptions.model_fields['dropout'].description}; its "
                           "trials train one by one, those without it (dropout = 0) also in stacks")
    lambda_orth: Scalar = Field(0.5, ge=0, description="weight of the penalty sum |A_i A_t^T| over the earlier tasks i")


class InfLoRAOptions(OutputsOptions, AlignOptions, SummedOptions):
    """Options of `inflora`; the default criterion and thresholds are those of its reference code's CIFAR-100 runs."""

    LATER: ClassVar[tuple[str, ...]] = ("design",)
    PAPER: ClassVar[tuple[Target, ...]] = ("k", "v")
    BEFORE: ClassVar[Mapping[str, Any]] = {"criterion": "inputs"}

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    alpha: float | Literal["auto"] | None = Field(  # type: ignore[assignment]  # `settled` replaces auto
        "auto", description=f"{LowRankOptions.model_fields['alpha'].description}; auto means rank / sqrt(3), as in the "
        "authors' code")
    threshold: float = Field(0.95, gt=0, le=1, description="share of the energy of a layer's inputs that the subspace "
                             "kept for earlier tasks holds after the first task")
    final_threshold: float = Field(1.0, gt=0, le=1, description="where the threshold goes, linearly: after task t "
                                   "(from 0) of T it has gone t / T of the way")
    criterion: Criterion = Field("moment", description="what counts as energy: the squared singular values of the "
                                 "inputs' second moment X X^T (moment: the authors' code), which keeps few directions, "
                                 "or those of the inputs X (inputs: the paper)")
    design: Criterion = Field("inputs", description="A has the strongest directions, outside the subspace kept for "
                              "earlier tasks, of the inputs X (inputs: the paper) or of their second moment X X^T "
                              "(moment: the authors' code)")

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with `auto` replaced by an alpha that corresponds to the authors' length of A's rows."""
        options = super().settled(pretrained, network)
        return options.model_copy(update={"alpha": self.rank / math.sqrt(3)}) if self.alpha == "auto" else options

    @field_validator("alpha")
    @classmethod
    def _is_positive(cls, alpha: float | str | None) -> float | str | None:
        """Reject a scale of 0 or below."""
        if isinstance(alpha, float) and not alpha > 0:
            raise ValueError(f"should be greater than 0, got {alpha:g}")
        return alpha

    @model_validator(mode="after")
    def _grows(self) -> InfLoRAOptions:
        """Reject a final threshold below the first one."""
        if self.final_threshold < self.threshold:
            raise ValueError(f"final_threshold = {self.final_threshold:g} is below threshold = {self.threshold:g}; it "
                             "should be at least that")
        return self


class SDLoRAOptions(OutputsOptions, SummedOptions):
    """Options of `sd-lora`; the defaults are those of its reference code's CIFAR-100 runs."""

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    later_ranks: dict[str, int] = Field({}, description="lower ranks from a task on, counted from 1, as in {5 = 8, "
                                        "9 = 6} (TOML): the authors' SD-LoRA-RR. A layer keeps a rank that is lower")
    magnitude: float = Field(0.8, gt=0, description="what a new direction's magnitude starts from, and with magnitudes "
                             "= shared in each task also those of the earlier")
    magnitudes: Magnitudes = Field("shared", description="one magnitude per task for all layers, all starting again in "
                                   "each task (shared: the authors' code), or one per task and layer, learned on from "
                                   "where they are, so that a task starts with the network as it was (layer)")
    norm: Norm = Field("factors", description="what an earlier direction is divided by: |B| |A| (factors: the authors' "
                       "code) or |BA| (product: the paper), in Frobenius norms")

    @field_validator("later_ranks")
    @classmethod
    def _of_tasks(cls, ranks: dict[str, int]) -> dict[str, int]:
        """Reject invalid task numbers and ranks, and sort by task."""
        for task, rank in ranks.items():
            if not task.isdecimal() or int(task) < 1 or rank < 1:
                raise ValueError(f"{task!r} = {rank} should be the number of a task, 1 or more, and a rank of at least "
                                 "1")
        return {str(task): ranks[name] for task, name in sorted((int(name), name) for name in ranks)}


class LoRASubOptions(OutputsOptions, SummedOptions):
    """Options of `lora-sub`; the defaults are those of its reference code's CIFAR-100 runs."""

    PAPER: ClassVar[tuple[Target, ...]] = ("k", "v")

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    threshold: float = Field(0.99, gt=0, le=1, description="share of the energy of a layer's inputs that the space "
                             "holds within which a later task's adapters change")
    scaled: bool = Field(True, description="divide the projector onto that space by its Frobenius norm (the authors' "
                         "code), so that steps shrink by the square root of its dimensions")
    project_b: bool = Field(True, description="project what B learns, too, in layers with as many outputs as inputs "
                            "(the authors' code, whose layers all are like that); else A's alone")
    strength: Scalar = Field(0.05, ge=0, description="lambda: weight of the triplet loss")
    margin: Scalar = Field(1.0, ge=0, description="by how much a sample should be nearer to the farthest of its class "
                           "than to the nearest of another")


class EWCLoRAOptions(OutputsOptions, AlignOptions, SummedOptions):
    """Options of `ewc-lora`; the defaults are those of its reference code's CIFAR-100 run (ewc_lora.py)."""

    PAPER: ClassVar[tuple[Target, ...]] = ("k", "v")

    outputs: Outputs = Field("own", description=MEANING)
    rank: int = Field(10, ge=1, description=LowRankOptions.model_fields["rank"].description)
    strength: Scalar = Field(1e7 / 128, ge=0, description="lambda: weight of the penalty strength/2 sum F (s B A)^2 on "
                             "the task's change of W")
    gamma: Scalar = Field(1.0, ge=0, le=1, description="what is left of the old Fisher at each new task")
    fisher: Literal["exact", "sampled", "empirical", "predicted"] = Field(
        "empirical", description="labels: the model's distribution, one draw from it, the true ones, or the most "
        "probable")
    fisher_samples: int | None = Field(None, ge=1, description="samples per task for the Fisher, none for all")


class LoRAMeanOptions(FixedOutputsOptions, SummedOptions):
    """Options of `lora-mean`."""

    @property
    def fixed_outputs(self) -> Outputs:
        """Return `own`: each task trains its own head, which has only the task's classes."""
        return "own"
