"""BiC (Wu et al. 2019, arXiv 1905.13260): replay, distill, and then correct the new classes' logits by two numbers.

First the network is trained on the task's samples and exemplars with

    (1 - s) cross-entropy over all classes so far + s distillation over the old ones,  s = n_old / (n_old + n_new)

at temperature 2, where n counts classes. Then the network is frozen. Cross-entropy on a small validation set, with
equally many samples of each class so far, determines alpha and beta of

    q_c = o_c for old c,  alpha o_c + beta for the task's new c.

Predictions use q, and the next task distills q. The next task's network therefore has to learn the corrected logits:
its own correction starts from alpha = 1 and beta = 0 and applies to its own new classes. The first task has no
correction.

Validation samples are drawn from a class's samples when the class is new, and the network is never trained on them.
Like exemplars, they become fewer per class as the number of classes grows: a tenth of the class's share of the
capacity, rounded up (`validation`). Exemplars and validation samples together do not exceed the capacity.

Reference codes differ:

- The authors' code, FACIL and clbench hold out validation samples from the beginning. PyCIL and Mammoth split those of
  old classes off the memory at each task, although the network has been trained on them.
- The authors' code and Mammoth correct the latest task's classes and then start over, as here. FACIL and PyCIL keep all
  earlier corrections on top of the network.
- The authors' code and FACIL add 0.1 beta^2 / 2 to the loss of the second phase, which is not in the paper. PyCIL
  applies a softmax to a softmax there. Neither is done here.
- Mammoth multiplies the distillation by T^2, and its s is 1 / t in task t, while the paper's is (t - 1) / t.
- Exemplars are herded, on features that the authors do not normalize (PyCIL and clbench do). FACIL draws them at random
  and Mammoth takes any. All codes append exemplars to the task's samples; here they are mixed in
  (clbench.strategy.herding).

The second phase gets a share of the task's steps (`correction_steps`), because all methods have the same budget. The
authors' code and PyCIL add twice or once as many epochs, each with a few samples. The authors' code, FACIL and PyCIL
train the two numbers at the first phase's learning rate, 0.1 with momentum 0.9. Here the rate is `correction_lr`, and
the learning rate of the training configuration has no effect on it: a rate that fits weights (Adam, 1e-3) would leave
numbers of order 1 at their initial values. The published configuration of the first phase has weight decay 2e-4
(CIFAR-100) or 1e-4.

Beyond the paper: if the task is known, labels compete within a task, and the outputs of each old task are distilled
separately. Outputs that are both old and the task's own (scenario `domain`, classes that return) have labels and are
distilled, and count in both n. The correction applies to new classes that compete with old ones, which happens only in
scenario `class`. In the other scenarios, nothing is held out and there is one phase.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from clbench import Batch, Network, Options, PhaseSpec, Samples, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.distillation import Distilled
from clbench.strategy.herding import HerdedMemory, first_labels, shortened, sizes_of
from clbench_bic import BiCOptions


class Correction(nn.Module):
    """q_c = alpha o_c + beta for the outputs in `corrected` [C], o_c for the others."""

    corrected: Tensor

    def __init__(self, outputs: int, like: Tensor) -> None:
        """Correct nothing."""
        super().__init__()
        self.alpha = nn.Parameter(like.new_ones(()), requires_grad=False)
        self.beta = nn.Parameter(like.new_zeros(()), requires_grad=False)
        self.register_buffer("corrected", torch.zeros(outputs, dtype=torch.bool, device=like.device))

    @torch.no_grad()
    def reset(self, outputs: Sequence[int]) -> None:
        """Choose the outputs to correct, and start with alpha = 1 and beta = 0."""
        self.alpha.fill_(1.0)
        self.beta.zero_()
        self.corrected.zero_()
        self.corrected[list(outputs)] = True

    def forward(self, logits: Tensor) -> Tensor:
        """Return the corrected logits [N, C]."""
        return torch.where(self.corrected, self.alpha * logits + self.beta, logits)


class BiC(HerdedMemory, Distilled):
    """Fine-tuning on new samples and exemplars with distillation, followed by training of the task's correction.

    validation_x, validation_y and validation_tasks hold the validation samples of earlier tasks, one set after another.
    """

    method = "bic"
    loss_is_mean = True
    roles = (("correction.*", "correction"), ("old_correction.*", "correction"), ("validation_*", "replay"),
             *HerdedMemory.roles, *Distilled.roles)
    options: BiCOptions
    validation_x: Tensor
    validation_y: Tensor
    validation_tasks: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no exemplars, and nothing to correct."""
        super().__init__(model, stream_info, options or BiCOptions())
        like, classes = model.head.weight, stream_info.classes
        self.correction, self.old_correction = Correction(classes, like), Correction(classes, like)
        self.register_buffer("validation_x", torch.empty(0, device=like.device))
        self.register_buffer("validation_y", torch.empty(0, dtype=torch.int64, device=like.device))
        self.register_buffer("validation_tasks", torch.empty(0, dtype=torch.int64, device=like.device))
        self.learning = [name for name, p in model.named_parameters() if p.requires_grad]
        self.met: list[int] = []  # classes of the tasks so far, including the current one
        self.new: list[int] = []  # classes of the current task that no earlier task had
        self.validation_sizes: list[int] = []  # sizes of the sets of validation samples
        self.held_out: list[int] = []  # indices of the task's validation samples
        self.held_out_sizes: list[int] = []
        self.correcting = False  # whether this is the second phase
        self.rate = 1.0  # factor of the configured learning rate in that phase

    @property
    def fewest(self) -> int:
        """Return 2 (an exemplar and a validation sample), or 1 if nothing is ever corrected."""
        return 2 if self.stream_info.seen_compete else 1

    def validation_size(self, sets: int, of_class: int) -> int:
        """Return the largest number of validation samples that a set may have."""
        if not self.stream_info.seen_compete:
            return 0
        return math.ceil(self.options.validation * self.slots_per_set(sets, of_class))

    def set_size(self, sets: int, of_class: int) -> int:
        """Return the largest number of exemplars of a set: its share, less the validation samples."""
        return self.slots_per_set(sets, of_class) - self.validation_size(sets, of_class)

    def before_task(self, task: Task) -> None:
        """Hold out validation samples, and reset the correction for the new classes.

        Raises:
            SpecError: a class has a single sample, or as in `HerdedMemory`.
        """
        self.new = [c for c in task.classes if c not in self.met]
        self.met = self.met + self.new
        self.correcting = False
        self.correction.reset(self.new if self.met != self.new and self.stream_info.seen_compete else ())
        self.hold_out(task)
        super().before_task(task)

    def hold_out(self, task: Task) -> None:
        """Draw the task's validation samples."""
        self.held_out, self.held_out_sizes = [], []
        sizes = sizes_of([*self.labels, *task.classes], self.validation_size)[len(self.labels):]
        for c, size in zip(task.classes, sizes, strict=True):
            if not size:
                continue
            rows = (task.train.y == c).nonzero()[:, 0].cpu()
            if len(rows) == 1:
                raise SpecError(f"bic: class {c} of task {task.index + 1} has a single sample, and one of each class "
                                "is held out from training to find the correction; leave bic out for this stream")
            drawn = torch.randperm(len(rows), generator=self.stream_info.generator)[:min(size, len(rows) // 2)]
            self.held_out += rows[drawn].tolist()
            self.held_out_sizes += [len(drawn)]

    def training_samples(self, task: Task) -> Samples:
        """Return the task's samples without the held-out ones."""
        if not self.held_out:
            return task.train
        remaining = torch.ones(len(task.train), dtype=torch.bool)
        remaining[self.held_out] = False
        return task.train.restricted(remaining.nonzero()[:, 0].to(task.train.index_device))

    def phases(self, task: Task) -> int | Sequence[float]:
        """Return the shares of training and correction, or one phase if there is nothing to correct."""
        share = self.options.correction_steps
        return (1 - share, share) if self.stream_info.seen_compete and self.new and self.met != self.new else 1

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Train either the network (first phase) or the correction (second phase)."""
        self.correcting = phase == 1
        self.rate = self.options.correction_lr / phase.lr
        for name in self.learning:
            self.model.get_parameter(name).requires_grad_(not self.correcting)
        self.correction.requires_grad_(self.correcting)

    def phase_samples(self, task: Task, phase: PhaseSpec) -> Samples | None:
        """Return the validation samples for the second phase, equally many of each class so far."""
        if phase != 1:
            return None
        earlier_samples, _ = self.left_of_validation([*self.labels, *task.classes])
        return Samples.concat(earlier_samples, self.task_validation(task))

    def left_of_validation(self, labels: Sequence[int]) -> tuple[Samples, list[int]]:
        """Return earlier tasks' validation samples that are kept if sets have these classes, and the sets' sizes."""
        samples, counts = Samples(self.validation_x, self.validation_y, self.validation_tasks), Counter(labels)
        new_sizes = [self.validation_size(len(labels), counts[label] or 1)
                     for label in first_labels(self.validation_y, self.validation_sizes)]
        return shortened(samples, self.validation_sizes, new_sizes)

    def task_validation(self, task: Task) -> Samples:
        """Return the task's own validation samples."""
        train = task.train.materialized()
        return train.take(torch.tensor(self.held_out, dtype=torch.int64).to(train.index_device))

    def learning_rates(self) -> Mapping[str, float]:
        """Return the factor of the correction's learning rate."""
        return {"correction.*": self.rate}

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the old network; in the second phase, also the current network."""
        return (self.old, self.model) if self.correcting else (self.old,)

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with its share of exemplars appended; in the second phase, return it unchanged."""
        return batch if self.correcting else super().prepare_batch(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Return cross-entropy and distillation, weighted; in the second phase, the corrected logits' cross-entropy."""
        logits = self(batch.x, batch.task)
        if self.correcting:
            return self.cross_entropy(logits, batch)
        old_logits = self.old_correction(self.old_logits(batch.x)) if batch.task else logits
        return self.balanced(logits, old_logits, batch, self.options.temperature)

    def after_task(self, task: Task) -> None:
        """Store the network with its correction, choose exemplars, and store the validation samples."""
        super().after_task(task)
        self.old_correction.load_state_dict(self.correction.state_dict())
        if not self.held_out:
            return
        samples = self.task_validation(task)
        if self.validation_sizes:
            earlier_samples, self.validation_sizes = self.left_of_validation(self.labels)
            samples = Samples.concat(earlier_samples, samples)
        self.validation_x, self.validation_y, self.validation_tasks = samples.x, samples.y, samples.tasks
        self.validation_sizes = self.validation_sizes + self.held_out_sizes

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the corrected logits [N, C] for inputs x [N, *input_shape]."""
        logits: Tensor = self.correction(self.model(x))
        return logits
