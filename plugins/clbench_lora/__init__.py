"""`lora`: a frozen backbone with low-rank adapters and a head for each task; and variants with shared adapters."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import StrategyInfo, hookimpl
from clbench_lora.options import (
    ALL_LINEAR,
    AdapterOptions,
    EWCLoRAOptions,
    InfLoRAOptions,
    Init,
    LoRAMeanOptions,
    LoRAOptions,
    LoRASubOptions,
    LowRankOptions,
    OLoRAOptions,
    SDLoRAOptions,
    SeqLoRAOptions,
    SummedOptions,
    Target,
)

__all__ = [
    "ALL_LINEAR", "AdapterOptions", "EWCLoRAOptions", "InfLoRAOptions", "Init", "LoRAMeanOptions", "LoRAOptions",
    "LoRASubOptions", "LowRankOptions", "OLoRAOptions", "SDLoRAOptions", "SeqLoRAOptions", "SummedOptions", "Target",
    "clbench_strategies",
]
BOTH, ALL = ("classification", "causal-lm"), ("classification", "causal-lm", "regression")  # objectives
CIFAR = {"epochs": 20, "batch_size": 128, "samples": 5000}  # budget of a CIFAR-100 task with ten classes


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies."""
    return (
        StrategyInfo("lora", "clbench_lora.strategy:LoRA",
                     "trains low-rank adapters and a head for each task on a frozen backbone", LoRAOptions,
                     paper="Hu et al. 2021, arXiv 2106.09685",
                     layer_rows=(("LoRA r={rank}", "rank={rank}:base=pretrained"),),
                     load_model="clbench_lora.reload:load_model", parts_per_task=True, display_name="LoRA r={rank}",
                     family="adapters and prompts", objectives=ALL),
        StrategyInfo("seq-lora", "clbench_lora.seq:SeqLoRA",
                     "trains one set of adapters and one head on one task after another", SeqLoRAOptions,
                     paper="Hu et al. 2021, arXiv 2106.09685; as the baseline SeqLoRA of Wang et al. 2023",
                     task_free=True, display_name="Seq-LoRA r={rank}", family="adapters and prompts", objectives=ALL),
        StrategyInfo("o-lora", "clbench_lora.olora:OLoRA",
                     "sums adapters of all tasks, each orthogonal to earlier ones; uses one head",
                     OLoRAOptions, paper="Wang et al. 2023, arXiv 2310.14152",
                     recipe={"optimizer": "adamw", "lr": 1e-3}, budget={"epochs": 1, "batch_size": 64, "samples": 5000},
                     parts_per_task=True, display_name="O-LoRA r={rank}", family="adapters and prompts",
                     objectives=ALL),
        StrategyInfo("inflora", "clbench_lora.inflora:InfLoRA",
                     "sums adapters of all tasks, each orthogonal to the inputs of earlier tasks",
                     InfLoRAOptions, paper="Liang & Li 2024, arXiv 2404.00228",
                     recipe={"optimizer": "adam", "lr": 5e-4, "schedule": "quarter-cosine", "schedule_by": "epoch"},
                     budget=CIFAR, parts_per_task=True, display_name="InfLoRA r={rank}", family="adapters and prompts",
                     objectives=BOTH),
        StrategyInfo("sd-lora", "clbench_lora.sdlora:SDLoRA",
                     "sums adapters of all tasks; fixes old directions, trains all magnitudes", SDLoRAOptions,
                     paper="Wu et al. 2025, arXiv 2501.13198",
                     recipe={"optimizer": "sgd", "lr": 8e-3, "momentum": 0.9}, budget=CIFAR, parts_per_task=True,
                     display_name="SD-LoRA r={rank}", family="adapters and prompts", objectives=BOTH),
        StrategyInfo("lora-sub", "clbench_lora.lorasub:LoRASub",
                     "sums adapters trained in a drift-resistant space; predicts the nearest mean", LoRASubOptions,
                     paper="Liu & Chang 2025, arXiv 2503.18985",
                     recipe={"optimizer": "adam", "lr": 5e-4, "head_lr": 2e-3, "schedule": "quarter-cosine",
                             "schedule_by": "epoch"},
                     budget=CIFAR, parts_per_task=True, display_name="LoRA-Sub r={rank}",
                     family="adapters and prompts"),
        StrategyInfo("ewc-lora", "clbench_lora.ewc_lora:EWCLoRA",
                     "trains an adapter with a Fisher penalty and merges it after each task",
                     EWCLoRAOptions, paper="Zheng et al. 2026, arXiv 2602.17559",
                     recipe={"optimizer": "adam", "lr": 5e-4, "head_lr": 5e-3, "schedule": "cosine",
                             "schedule_by": "epoch"},
                     budget=CIFAR, display_name="EWC-LoRA r={rank}", family="adapters and prompts", objectives=BOTH),
        StrategyInfo("lora-mean", "clbench_lora.lora_mean:LoRAMean",
                     "trains adapters for each task as lora does, and predicts with their mean",
                     LoRAMeanOptions, paper="Wortsman et al. 2022, arXiv 2203.05482; with LoRA: Chitale et al. 2023, "
                     "arXiv 2311.02428", parts_per_task=True, display_name="LoRA-Mean r={rank}", objectives=BOTH,
                     family="adapters and prompts"),
    )
