"""Training loops of strategies that have no stream."""

from types import SimpleNamespace

from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica


def loop(strategies, recipe, seeds, augment=None):
    """Return the training loop of bare strategies; of their stream it has only how images are augmented."""
    return TrainingLoop([Replica(strategy, SimpleNamespace(augment=augment, hidden=False), seed)
                         for strategy, seed in zip(strategies, seeds, strict=True)], recipe)
