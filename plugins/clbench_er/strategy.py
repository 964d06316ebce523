"""Experience replay: every step trains on new samples and as many from a small memory of the stream.

As in Chaudhry et al. 2019 (arXiv 1902.10486): draw the replay batch, take one step on the mean loss over both, and
offer the new samples to the memory. Each sample is offered once however many epochs there are, as in the single pass
they study, so that the memory stays a uniform sample of the stream. The memory is that of clbench.memory.
"""

from __future__ import annotations

from clbench import Batch, Network, Options, Samples, World
from clbench.memory import Rehearsal
from clbench_er import EROptions


class ER(Rehearsal):
    """Fine-tuning on batches with an equally large replay batch (what the memory has, where it has fewer) behind."""

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with an empty memory."""
        options = options or EROptions()
        assert isinstance(options, EROptions)
        super().__init__(model, world, options, capacity=options.capacity, balance=options.balance)

    def augment_batch(self, batch: Batch) -> Batch:
        """Return the batch with its replay samples behind; afterwards the memory is offered the new ones."""
        extended = batch.extended(self.recall(len(batch.y))) if len(self.memory_y) else batch
        if batch.first_pass:
            self.remember(Samples(batch.x, batch.y, batch.tasks))
        return extended
