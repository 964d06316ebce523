"""`lora`: a frozen base and, for each task, low-rank adapters and a head."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field, field_validator

from clbench import StrategyInfo, hookimpl
from clbench.pertask_options import BaseOptions


class LoRAOptions(BaseOptions):
    """Options of `lora`."""

    rank: int = Field(4, ge=1, description="rank r of the adapters; at most the width of every layer they are on")
    alpha: float | None = Field(None, gt=0, description="scale: an adapter's output is multiplied by alpha / rank; "
                                "none means rank, a factor of 1")
    layers: str = Field("all", min_length=1, description="which Linear and Conv2d layers of the blocks are adapted: "
                        "all | last | attention (its q, k, v, proj) | a regular expression that fits whole names, "
                        "such as 'blocks\\.1\\..*'")

    @field_validator("layers")
    @classmethod
    def _compiles(cls, layers: str) -> str:
        """Refuse what is no regular expression."""
        try:
            re.compile(layers)
        except re.error as error:
            raise ValueError(f"{layers!r} is not a regular expression: {error}") from None
        return layers


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("lora", "clbench_lora.strategy:LoRA",
                         "base frozen; per task low-rank adapters h = Wx + (alpha/rank) B(Ax), and a head",
                         LoRAOptions, paper="Hu et al. 2021, arXiv 2106.09685"),)
