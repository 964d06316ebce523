"""Dark experience replay: replay samples with the logits that the network produced when it first saw them.

    DER:   cross-entropy + alpha mean (f(x') - z')^2
    DER++: that + beta cross-entropy(x'', y''),   (x', z') and (x'', y'') two draws from the memory

The memory is a reservoir of all training samples, and each epoch offers the samples again, as in the authors' code. Its
logits therefore come from all stages of training. As in their code, the squared error is averaged over all outputs and
samples, and as many samples are drawn as are new (twice in DER++).

Differences: the stored logits belong to samples as the stream stores them, computed in eval mode before the step. The
authors' belong to the augmented sample in training mode. Here, the cross-entropies are over each sample's active
outputs. The authors train on all outputs in every scenario, and mask outputs at test time in scenarios with task IDs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, Samples, StreamInfo
from clbench.strategy.per_sample_gradients import evaluating
from clbench.strategy.replay import ReplayMemory, write_slots
from clbench_der import DEROptions, DERPPOptions


class DER(ReplayMemory):
    """Replay of logits: `memory_logits` [M, C] are the stored ones, `kept_logits` [R, C] those of the current draw."""

    options: DEROptions
    memory_logits: Tensor
    kept_logits: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        options = options or DEROptions()
        assert isinstance(options, DEROptions)
        super().__init__(model, stream_info, options, capacity=options.capacity)
        empty = torch.empty(0, stream_info.classes, device=self.class_mask.device)
        self.register_buffer("memory_logits", empty)
        self.register_buffer("kept_logits", empty.clone(), persistent=False)

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with replayed samples appended, and then offer the new samples to the memory."""
        new_samples = Samples(batch.x, batch.y, batch.tasks)
        if len(self.memory_y):
            slots = self.draw(len(batch.y))
            self.kept_logits = self.memory_logits[slots]
            batch = self.with_second_draw(batch.extended(self.memory.take(slots)), len(batch.y))
        self.offer(new_samples)
        return batch

    def with_second_draw(self, batch: Batch, new: int) -> Batch:
        """Append further replayed samples to the batch, given the number of new samples. Default: none."""
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the new samples plus the replayed terms."""
        logits = self(batch.x, batch.task)
        new_count = len(batch.y) - batch.replayed
        loss = F.cross_entropy(self.mask(logits[:new_count], batch.tasks[:new_count]), batch.y[:new_count])
        if batch.replayed:
            end = new_count + len(self.kept_logits)
            squared_error = F.mse_loss(logits[new_count:end], self.kept_logits)
            loss = loss + self.options.alpha * squared_error + self.label_loss(logits, batch, end)
        return loss

    def label_loss(self, logits: Tensor, batch: Batch, start: int) -> Tensor | float:
        """Return the loss of the samples that `with_second_draw` appended, which begin at row `start`. Default: 0."""
        return 0.0

    def _write(self, new: Samples, slots: Tensor) -> None:
        """Store new samples in slots of the memory, with their logits."""
        with torch.no_grad(), evaluating(self):
            logits = self(self.stream_info.prepare(new.x))
        super()._write(new, slots)
        self.memory_logits = write_slots(self.memory_logits, logits, slots)


class DERPP(DER):
    """DER with a second draw, whose labels are replayed."""

    options: DERPPOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        super().__init__(model, stream_info, options or DERPPOptions())

    def with_second_draw(self, batch: Batch, new: int) -> Batch:
        """Return the batch with the second draw appended."""
        return batch.extended(self.sample(new))

    def label_loss(self, logits: Tensor, batch: Batch, start: int) -> Tensor:
        """Return the second draw's cross-entropy."""
        masked = self.mask(logits[start:], batch.tasks[start:], len(logits) - start)
        return self.options.beta * F.cross_entropy(masked, batch.y[start:])
