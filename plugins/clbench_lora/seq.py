"""Sequential LoRA: one set of adapters, trained on one task after another.

This is LoRA (Hu et al. 2021, arXiv 2106.09685) without any provision for several tasks: fine-tuning confined to rank r.
It is the baseline SeqLoRA of Wang et al. 2023 (arXiv 2310.14152). Nothing prevents forgetting. If it forgets less than
`naive`, that is due to the rank.

With `merge = true`, the adapter is added to W after each task, and the next task trains a new adapter from there. The
change that all tasks make together is then no longer confined to rank r.

With `replay = s`, samples of earlier tasks are mixed into the batches, s for each new sample. This is as in training
sets to which a share of old samples is added. The replayed samples are added to the new ones, so a batch has 1 + s
times its size. The memory is the reservoir of `er` with `update = task`: it is offered a task's samples after the task,
so nothing is replayed in the first task. If boundaries are hidden, it is offered samples as they arrive.

In scenario class, the cross-entropy is over the task's own classes (`outputs`), as in the baselines of the papers on
low-rank adapters (Zheng et al. 2026, arXiv 2602.17559). With hidden boundaries it is over all classes seen.

After each task, the current adapter of a language model is written in PEFT's format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clbench import Batch, Network, Samples, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.alignment import Aligned
from clbench.strategy.replay import ReplayMemory
from clbench_lora import SeqLoRAOptions
from clbench_lora.exported import ExportedAdapters
from clbench_lora.shared_adapters import SummedLoRA


class SeqLoRA(ExportedAdapters, Aligned, SummedLoRA):
    """A frozen backbone W, one adapter on each selected layer, and the model's head over all classes, as in `naive`.

    If the options ask for replay, the instance is a `ReplayedSeqLoRA`.
    """

    method = "seq-lora"
    roles = (*Aligned.roles, *SummedLoRA.roles)
    options: SeqLoRAOptions

    def __new__(cls, model: Any = None, stream_info: Any = None, options: SeqLoRAOptions | None = None) -> SeqLoRA:
        """Create an instance of the class that the options need. Only the class with replay stores a memory."""
        has_replay = cls is SeqLoRA and options is not None and options.replay > 0
        return super().__new__(ReplayedSeqLoRA if has_replay else cls)

    def __init__(self, model: Network, stream_info: StreamInfo, options: SeqLoRAOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model or cannot be merged into it."""
        super().__init__(model, stream_info, options if options is not None else SeqLoRAOptions())
        if self.options.merge and stream_info.predicts_tokens:
            self.notes.append("merge = true: adapters are not exported, because they are merged into W")
        if self.options.merge and self.options.bias:
            for name, layer in self.adapted.items():
                if layer.base_layer.bias is None:
                    raise SpecError(f"seq-lora: merge = true adds the adapter's bias to that of {name}, which has "
                                    "none; leave bias out")

    def grows(self, task: Task) -> bool:
        """Return whether it is the first task."""
        return task.index == 0

    def before_task(self, task: Task) -> None:
        """Prepare the adapters for the task; if the previous adapter was merged, start a new one."""
        super().before_task(task)
        for layer in self.adapted.values() if self.options.merge and task.index else ():
            layer.restart()

    def after_task(self, task: Task) -> None:
        """Realign the head and merge the adapters, if the options ask for it. Merging changes no output."""
        super().after_task(task)
        for layer in self.adapted.values() if self.options.merge else ():
            layer.merge()


    def export(self, folder: Path, task: Task) -> None:
        """Write the adapter of a language model as it is after the task, in PEFT's format."""
        if self.stream_info.predicts_tokens and not self.options.merge:
            self.write_task(folder, task, -1, None)


class ReplayedSeqLoRA(ReplayMemory, SeqLoRA):
    """Sequential LoRA on batches to which samples of earlier tasks are appended."""

    def __init__(self, model: Network, stream_info: StreamInfo, options: SeqLoRAOptions) -> None:
        """Start with an empty memory."""
        super().__init__(model, stream_info, options, capacity=options.capacity)

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with replayed samples appended; with hidden boundaries, offer the new ones to the memory."""
        replayed = self.sample_share(len(batch.y), self.options.replay)
        if not self.stream_info.boundaries:
            self.offer(Samples(batch.x, batch.y, batch.tasks))
        return batch.extended(replayed) if len(replayed) else batch

    def after_task(self, task: Task) -> None:
        """Offer the task's samples to the memory, unless boundaries are hidden: then it was offered each batch."""
        super().after_task(task)
        if self.stream_info.boundaries:
            self.offer(task.train)
