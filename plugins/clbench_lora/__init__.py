"""`lora`: a frozen base and, for each task, low-rank adapters and a head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from clbench import Options, StrategyInfo, hookimpl
from clbench.pertask_options import BaseOptions

Init = Literal["kaiming", "gaussian", "pissa"]


class AdapterOptions(Options):
    """Which layers have adapters, and what these are."""

    rank: int = Field(4, ge=1, description="rank r of the adapters; at most the width of every layer they are on")
    rank_pattern: dict[str, int] = Field({}, description="other ranks for layers whose whole name a regular expression "
                                         "fits, as in {'blocks\\.0\\..*' = 2} (TOML)")
    alpha: float | None = Field(None, gt=0, description="scale: an adapter's output is multiplied by alpha / rank; "
                                "none means rank, a factor of 1")
    scaling: Literal["standard", "rslora"] = Field(
        "standard", description="alpha / rank, or alpha / sqrt(rank) (rank-stabilised: Kalajdzievski 2023)")
    init: Init = Field("kaiming", description="A Kaiming-uniform (PEFT's) or Gaussian, with B zero; or both from the "
                       "largest singular values of W (pissa: Meng et al. 2024; Linear layers only)")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapters' inputs zeroed in training")
    layers: str = Field("all", min_length=1, description="which Linear and Conv2d layers of the blocks are adapted: "
                        "all | last | last:N | attention (its q, k, v, proj) | a regular expression that fits whole "
                        "names, such as 'blocks\\.1\\..*'")
    bias: bool = Field(False, description="give B a bias (PEFT's lora_bias), scaled as the adapter is")
    dora: bool = Field(False, description="learn the length of each row of W + BA apart (Liu et al. 2024)")

    @field_validator("layers")
    @classmethod
    def _compiles(cls, layers: str) -> str:
        """Refuse what is no regular expression."""
        try:
            re.compile(layers)
        except re.error as error:
            raise ValueError(f"{layers!r} is not a regular expression: {error}") from None
        return layers

    @field_validator("rank_pattern")
    @classmethod
    def _ranks(cls, patterns: dict[str, int]) -> dict[str, int]:
        """Refuse patterns that are none and ranks below 1."""
        for pattern, rank in patterns.items():
            cls._compiles(pattern)
            if rank < 1:
                raise ValueError(f"the rank of {pattern!r} should be at least 1, got {rank}")
        return patterns

    @model_validator(mode="after")
    def _goes_with_dora(self) -> AdapterOptions:
        """Refuse dora with pissa or bias, which nobody has defined."""
        if self.dora and self.init == "pissa":
            raise ValueError("dora goes with init = kaiming or gaussian, not with pissa")
        if self.dora and self.bias:
            raise ValueError("dora does not go with bias = true; choose one of them")
        return self


class LoRAOptions(AdapterOptions, BaseOptions):
    """Options of `lora`."""


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("lora", "clbench_lora.strategy:LoRA",
                         "base frozen; per task low-rank adapters h = Wx + (alpha/rank) B(Ax), and a head",
                         LoRAOptions, paper="Hu et al. 2021, arXiv 2106.09685"),)
