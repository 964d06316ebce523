"""`avalanche:NAME`: Avalanche's own strategies, in clbench's harness (Lomonaco et al. 2021, arXiv 2104.00405).

`clbench run --methods ewc,avalanche:EWC` compares the two; docs/avalanche.md says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from clbench import StrategyInfo, hookimpl
from clbench_avalanche import options as o

PAPER = "Lomonaco et al. 2021, arXiv 2104.00405 (Avalanche)"
USABLE: tuple[tuple[type[o.AvalancheOptions], str], ...] = (
    (o.NaiveOptions, "fine-tuning"),
    (o.CumulativeOptions, "trains on the data of all tasks so far"),
    (o.JointTrainingOptions, "trains on the data of all tasks so far, batches shared out among the tasks"),
    (o.FromScratchTrainingOptions, "begins each task with the first weights"),
    (o.EWCOptions, "elastic weight consolidation"),
    (o.LwFOptions, "learning without forgetting"),
    (o.SynapticIntelligenceOptions, "synaptic intelligence; on a CPU it holds nothing (docs/avalanche.md)"),
    (o.MASOptions, "memory-aware synapses"),
    (o.LFLOptions, "less-forgetful learning: features stay near the old network's, the head is frozen"),
    (o.ReplayOptions, "a batch of memory with every batch of data"),
    (o.GDumbOptions, "trains anew on a class-balanced memory alone"),
    (o.GSSGreedyOptions, "replay; the memory takes samples whose gradients differ"),
    (o.MIROptions, "replays the samples that a step would harm most"),
    (o.AGEMOptions, "gradients projected so that the memory's loss does not grow"),
    (o.DEROptions, "dark experience replay"),
    (o.ERACEOptions, "replay with asymmetric cross-entropy"),
    (o.ERAMLOptions, "replay with asymmetric metric learning"),
    (o.FeatureReplayOptions, "replays features to the head"),
    (o.CWRStarOptions, "trains the network on the first task, then weights of the head only"),
    (o.PNNStrategyOptions, "progressive networks, of linear layers"),
)
UNUSABLE = {
    "AETraining": "it trains an autoencoder, not a classifier",
    "AR1": "it has a network of its own, whose weights it downloads",
    "BiC": "its second stage passes verbose= to torch's MultiStepLR, which torch no longer takes",
    "CoPE": "it classifies by prototypes, of all classes from the beginning, in Avalanche's own evaluation loop",
    "ExpertGateStrategy": "it has a network of its own (AlexNet) for every task",
    "GEM": "its quadratic program needs the solver quadprog, which is not installed (pip install quadprog)",
    "GenerativeReplay": "its generator is made for MNIST and trained by another strategy, outside the recipe's budget",
    "ICaRL": "it is built from a feature extractor and a classifier and takes no model",
    "LearningToPrompt": "it takes a vision transformer of timm's by name, with a prompt in it, and no model",
    "MER": "it takes an optimiser step for every sample of a batch, n_inner_steps times: not the recipe's budget",
    "OnlineNaive": "Avalanche has replaced it by Naive: avalanche:Naive",
    "PackNet": "it needs a model in Avalanche's PackNetModel, which prunes by epochs that the recipe does not know",
    "SCR": "it needs Avalanche's SCRModel, with a projection behind the features",
    "StreamingLDA": "it takes no optimiser steps but fits statistics, which needs a loop that clbench does not lead",
    "VAETraining": "it trains an autoencoder, not a classifier",
}
REFERENCES = {"Naive", "Cumulative", "JointTraining"}


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies that work, and the others with the reason why they do not."""
    found = [*USABLE]
    reasons = dict(UNUSABLE)
    if find_spec("quadprog"):
        found.append((o.GEMOptions, "gradients projected so that no old task's loss grows"))
        del reasons["GEM"]
    target = "clbench_avalanche.load:Avalanche"
    usable = [StrategyInfo(f"avalanche:{options.strategy}", target, f"Avalanche's: {summary}", options, PAPER,
                           options.strategy in REFERENCES, parts_per_task=options is o.PNNStrategyOptions)
              for options, summary in found]
    return [*usable, *(StrategyInfo(f"avalanche:{name}", target, "", unavailable=why) for name, why in reasons.items())]
