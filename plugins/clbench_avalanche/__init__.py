"""`avalanche:NAME`: Avalanche's own strategies, in clbench's harness (Lomonaco et al. 2021, arXiv 2104.00405).

`clbench run --methods ewc,avalanche:EWC` compares the two; docs/avalanche.md says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from clbench import StrategyInfo, hookimpl
from clbench_avalanche import options as o

PAPER = "Lomonaco et al. 2021, arXiv 2104.00405 (Avalanche)"
ORIGINS = {  # the paper of each method that has its own
    "EWC": "Kirkpatrick et al. 2017, arXiv 1612.00796",
    "LwF": "Li & Hoiem 2016, arXiv 1606.09282",
    "SynapticIntelligence": "Zenke et al. 2017, arXiv 1703.04200",
    "MAS": "Aljundi et al. 2018, arXiv 1711.09601",
    "LFL": "Jung et al. 2016, arXiv 1607.00122",
    "GDumb": "Prabhu et al. 2020, ECCV",
    "GSS_greedy": "Aljundi et al. 2019, arXiv 1903.08671",
    "MIR": "Aljundi et al. 2019, arXiv 1908.04742",
    "AGEM": "Chaudhry et al. 2019, arXiv 1812.00420",
    "GEM": "Lopez-Paz & Ranzato 2017, arXiv 1706.08840",
    "DER": "Buzzega et al. 2020, arXiv 2004.07211",
    "ER_ACE": "Caccia et al. 2022, arXiv 2104.05025",
    "ER_AML": "Caccia et al. 2022, arXiv 2104.05025",
    "CWRStar": "Lomonaco et al. 2020, arXiv 1907.03799",
    "PNNStrategy": "Rusu et al. 2016, arXiv 1606.04671",
}
USABLE: tuple[tuple[type[o.AvalancheOptions], str], ...] = (
    (o.NaiveOptions, "fine-tunes on one task after another"),
    (o.CumulativeOptions, "trains on the data of all tasks so far"),
    (o.JointTrainingOptions, "trains on all tasks so far, each of them in every batch"),
    (o.FromScratchTrainingOptions, "starts each task from the initial weights"),
    (o.EWCOptions, "penalizes changes of parameters by their Fisher information"),
    (o.LwFOptions, "distills the old network's outputs on new samples"),
    (o.SynapticIntelligenceOptions, "penalizes changes of parameters; has no effect on a CPU"),
    (o.MASOptions, "penalizes changes of parameters that affect the outputs"),
    (o.LFLOptions, "keeps features near the old network's; the head is frozen"),
    (o.ReplayOptions, "replays a batch of stored samples with every new batch"),
    (o.GDumbOptions, "trains from scratch on a class-balanced buffer alone"),
    (o.GSSGreedyOptions, "replays stored samples, selected for different gradients"),
    (o.MIROptions, "replays the samples whose loss a step would raise most"),
    (o.AGEMOptions, "projects gradients; the stored samples' loss does not rise"),
    (o.DEROptions, "replays stored samples with their stored logits"),
    (o.ERACEOptions, "replays with an asymmetric cross-entropy"),
    (o.ERAMLOptions, "replays with asymmetric metric learning"),
    (o.FeatureReplayOptions, "replays stored features to the head"),
    (o.CWRStarOptions, "trains the network on the first task, then only the head"),
    (o.PNNStrategyOptions, "adds a column of linear layers for each task"),
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
    "MER": "it takes an optimizer step for every sample of a batch, n_inner_steps times: not the recipe's budget",
    "OnlineNaive": "Avalanche has replaced it by Naive: avalanche:Naive",
    "PackNet": "it needs a model in Avalanche's PackNetModel, which prunes by epochs that the recipe does not know",
    "SCR": "it needs Avalanche's SCRModel, with a projection behind the features",
    "StreamingLDA": "it takes no optimizer steps but fits statistics, which needs a loop that clbench does not lead",
    "VAETraining": "it trains an autoencoder, not a classifier",
}
REFERENCES = {"Naive", "Cumulative", "JointTraining"}


def paper(strategy: str) -> str:
    """Return the paper of a strategy's method, if it has one, and Avalanche's."""
    return "; ".join([*([ORIGINS[strategy]] if strategy in ORIGINS else []), PAPER])


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategies that work, and the others with the reason why they do not."""
    strategies = [*USABLE]
    reasons = dict(UNUSABLE)
    if find_spec("quadprog"):
        strategies.append((o.GEMOptions, "projects gradients so that no old task's loss rises"))
        del reasons["GEM"]
    target = "clbench_avalanche.load:Avalanche"
    usable = [StrategyInfo(f"avalanche:{options.strategy}", target, summary, options, paper(options.strategy),
                           options.strategy in REFERENCES, parts_per_task=options is o.PNNStrategyOptions,
                           family="Avalanche strategies")
              for options, summary in strategies]
    return [*usable, *(StrategyInfo(f"avalanche:{name}", target, "", unavailable=why) for name, why in reasons.items())]
