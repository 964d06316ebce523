"""Experience replay: every step trains on new samples and on as many samples from a small memory of the stream.

A step is that of Chaudhry et al. 2019 (arXiv 1902.10486). It draws the replay batch, takes one step on the mean loss
over new and replayed samples, and offers the new samples to the memory. With several epochs, each sample is still
offered only once. This corresponds to the single pass that they study, and the memory stays a uniform sample of the
stream. The memory is that of clbench.strategy.replay.

With `share = s`, a step replays s samples for each new one, as in training sets that mix a share of old samples into
the new ones. The replayed samples are added to the batch, so the batch has 1 + s times its size.

With `weights = by-task`, the loss in task t is 1 / t times the mean over the new samples plus 1 - 1 / t times the mean
over the replayed ones, as in van de Ven's code (GMvandeVen/continual-learning). In a step without replayed samples,
which a small `share` can cause, it is the mean over the new samples, without a weight.

With `update = task`, the memory is offered a task's samples after the task, as in Avalanche's Replay. Nothing is then
replayed in the first task, and samples of the current task are never replayed. If task boundaries are hidden, the
samples are still offered in every step. Otherwise the method would be the same as `naive`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, Samples, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.replay import ReplayMemory
from clbench_er import EROptions, ReplayOptions


class ER(ReplayMemory):
    """Fine-tuning on batches of new and replayed samples; their ratio follows from the options and the memory."""

    inputs_only_through_model = True
    options: ReplayOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with an empty memory."""
        options = options or EROptions()
        assert isinstance(options, ReplayOptions)
        super().__init__(model, stream_info, options, capacity=options.capacity, balance=options.balance)
        self.weights_by_task = isinstance(options, EROptions) and options.weights == "by-task"
        if self.weights_by_task and not stream_info.has_classes:
            raise SpecError("weights = by-task needs classes, which this benchmark does not have; choose weights = "
                            "constant")
        if options.update == "task" and not stream_info.boundaries:
            self.notes.append("update = task: boundaries are hidden, so samples are offered to the memory as they pass")

    @property
    def loss_is_mean(self) -> bool:  # type: ignore[override]
        """Return whether the loss is a mean over samples; it is not if new and replayed samples have weights."""
        return not self.weights_by_task

    def prepare_batch(self, batch: Batch) -> Batch:
        """Append replayed samples to the batch; then, in the first pass, offer the new ones to the memory if due."""
        replayed = self.replay(batch)
        extended = batch.extended(replayed) if len(replayed) else batch
        if batch.first_pass and self.as_they_pass:
            self.offer(Samples(batch.x, batch.y, batch.tasks))
        return extended

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of all samples, or a weighted sum of the means of new and replayed ones."""
        if not batch.replayed or not self.weights_by_task:
            return super().loss(batch)
        share, new_count = 1 / (batch.task + 1), len(batch.y) - batch.replayed
        logits = self.mask(self(batch.x, batch.task), batch.tasks, batch.replayed)
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        return share * losses[:new_count].mean() + (1 - share) * losses[new_count:].mean()

    def replay(self, batch: Batch) -> Samples:
        """Return the samples to replay with a raw batch. Default: random ones, `share` (or 1) for each new sample."""
        return self.sample_share(len(batch.y), self.options.share if isinstance(self.options, EROptions) else 1)

    @property
    def as_they_pass(self) -> bool:
        """Return whether samples are offered in every step; with hidden boundaries, the whole stream is one task."""
        return self.options.update == "step" or not self.stream_info.boundaries

    def after_task(self, task: Task) -> None:
        """Offer all of the task's samples to the memory, unless the steps have already offered them."""
        if not self.as_they_pass:
            self.offer(task.train)
