"""Experience replay: every step trains on new samples and as many from a small memory of the stream.

As in Chaudhry et al. 2019 (arXiv 1902.10486): draw the replay batch, take one step on the mean loss over both, and
offer the new samples to the memory. Each sample is offered once however many epochs there are, as in the single pass
they study, so that the memory stays a uniform sample of the stream. The memory is that of clbench.strategy.replay.

With `share = s` a step replays fewer samples, or more, than are new: s for each new one, as in training sets that mix a
share of old samples into the new ones. The replayed samples come in addition, so the batch has 1 + s times its size.

With `weights = by-task`, the loss in task t is 1 / t times the mean over the new samples plus 1 - 1 / t times the mean
over the replayed ones, as in van de Ven's code (GMvandeVen/continual-learning).

With `update = task` the memory is offered a task's samples after the task, as in Avalanche's Replay: nothing is
replayed in the first task, and none of the task at hand in any. Where boundaries are hidden, it is offered them in
every step all the same: else it would be `naive`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, Samples, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.replay import ReplayMemory
from clbench_er import EROptions, ReplayOptions


class ER(ReplayMemory):
    """Fine-tuning on batches with a replay batch behind: equally large, or what the options and the memory allow."""

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
        """Tell whether the loss is a mean over samples: not if new and replayed ones have weights."""
        return not self.weights_by_task

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with its replay samples behind; afterwards the memory may be offered the new ones."""
        replayed = self.replay(batch)
        extended = batch.extended(replayed) if len(replayed) else batch
        if batch.first_pass and self.as_they_pass:
            self.offer(Samples(batch.x, batch.y, batch.tasks))
        return extended

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of all samples, or weighted means of that of new and of replayed ones."""
        if not batch.replayed or not self.weights_by_task:
            return super().loss(batch)
        share, new = 1 / (batch.task + 1), len(batch.y) - batch.replayed
        logits = self.mask(self(batch.x, batch.task), batch.tasks, batch.replayed)
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        return share * losses[:new].mean() + (1 - share) * losses[new:].mean()

    def replay(self, batch: Batch) -> Samples:
        """Return the samples to replay with a raw batch, at random. Default: as many as are new, or a share of them."""
        return self.sample_share(len(batch.y), self.options.share if isinstance(self.options, EROptions) else 1)

    @property
    def as_they_pass(self) -> bool:
        """Tell whether the memory is offered samples in every step: with hidden boundaries no task ends before all."""
        return self.options.update == "step" or not self.stream_info.boundaries

    def after_task(self, task: Task) -> None:
        """Offer all of the task's samples to the memory, if it has not been offered them one by one."""
        if not self.as_they_pass:
            self.offer(task.train)
