"""Training loops for strategies without a stream."""

from types import SimpleNamespace

from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica


def loop(strategies, recipe, seeds, augment=None):
    """Return a training loop for strategies without a stream; the loop gets only the stream's augmentation."""
    return TrainingLoop([Replica(strategy, SimpleNamespace(augment=augment, hidden=False), seed)
                         for strategy, seed in zip(strategies, seeds, strict=True)], recipe)
