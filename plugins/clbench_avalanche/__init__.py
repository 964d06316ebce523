"""`avalanche:NAME`: Avalanche's own strategies, in clbench's harness (Lomonaco et al. 2021, arXiv 2104.00405).

    clbench run --methods ewc,avalanche:EWC
"""

from __future__ import annotations

from collections.abc import Sequence

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
    (o.CWRStarOptions, "trains the network on the first task, then weights of the head only"),
    (o.PNNStrategyOptions, "progressive networks, of linear layers"),
)
REFERENCES = {"Naive", "Cumulative", "JointTraining"}


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare those that work, and why the others do not."""
    usable = [StrategyInfo(f"avalanche:{options.strategy}", "clbench_avalanche.strategy:Avalanche",
                           f"Avalanche's: {summary}", options, PAPER, options.strategy in REFERENCES)
              for options, summary in USABLE]
    return usable
