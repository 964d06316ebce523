"""MOS: model surgery (Sun et al. 2025, arXiv 2412.09441): merged adapters per task, chosen and refined at test time.

Training of task b, with adapters A_b that start where those of the last task ended, and a head h of all outputs:

    loss = cross-entropy over the task's own classes + contrast * C
    C    = cross-entropy of each row of M M^T / 0.8 with the row itself as the label,
           M = [mean features of each earlier class; features of the batch]
    after each step:  A_b <- (1 - merge) A_b + merge * mean(A_1, ..., A_(b-1))

After the task, the head is realigned on Gaussians of all classes so far, each of the features with the adapters of its
task (`clbench.strategy.alignment`). Logits are not normalized, and the next task goes on from the realigned head.

Test, with f_t the features with the adapters of task t and p_c the mean f_1 of a class c:

    t = task of the class with the largest cos(f_1, p_c)
    up to `moves` times:  t <- task of the class that h(f_t) predicts
    p = softmax(h(f_t)) + softmax(T cos(f_1, p_c)) over the classes of T learned tasks                (`ensemble`)

The authors' code (sun-hailong/AAAI25-MOS) was read; of the paper, its abstract. Details and differences:

- The code merges in place in every forward pass, also at test time, and again for each transformer block. With 12
  blocks, a step merges 13 times, and predictions change adapters. As we understand the paper, a step merges once.
- The code's adapters are those of EASE with 16 numbers in the middle, factor 0.1 and dropout 0.1. `adapter = lora` is
  an addition of clbench for other networks.
- The head learns at a tenth of the rate of the adapters (`head_rate`), and its rows of other classes decay.
- Alignment draws 5 times the batch size (`align_samples`) for each class, 30 times. For ImageNet-A the code stores
  variances only, here always covariances.
- The code trains 20 epochs for CIFAR-100, with batches of 48, rate 0.03 and weight decay 5e-4. For ImageNet-R it has
  10 epochs, 16, 0.05 and 5e-3.
- The merge of a step is done when the next step begins, or when the task ends (clbench.strategy.after_steps). Accuracy
  that is measured within a task comes from the adapters of the tasks before.
- The paper studies scenario `class`. If the task is given, its adapters are used, and only its classes have a
  probability. In scenario `domain`, a class does not identify a task, so t is the task of the most similar mean.

The paper's network is pretrained (`base = pretrained`). With `base = task1`, the first half of the first task's steps
trains the network and its head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, StreamInfo, Task
from clbench.core.device import send
from clbench.strategy.after_steps import ActsAfterSteps
from clbench.strategy.alignment import Aligned
from clbench.strategy.base import Prediction
from clbench.strategy.gaussians import class_means
from clbench_ease import MOS_WIDTHS, MOSOptions
from clbench_ease.adapted import TaskAdapters

TEMPERATURE = 0.8  # of the contrast


class MOS(ActsAfterSteps, Aligned, TaskAdapters):
    """A frozen network, adapters per task, and the network's own head.

    The buffers have a row for each class of each learned task. `labels` [K] is its output and `owners` [K] its task.
    `task_means` [K, D] are its mean features with the adapters of that task, and `prototypes` [K, D] its mean features
    with the first task's adapters.
    """

    method, widths = "mos", MOS_WIDTHS
    recalls = False
    inputs_only_through_model = True
    roles = (("*.adapters.*", "adapters"), ("*.lora_*", "adapters"), ("task_means", "prototypes"),
             ("prototypes", "prototypes"), ("labels", "prototypes"), ("owners", "prototypes"), *Aligned.roles)
    options: MOSOptions
    labels: Tensor
    owners: Tensor
    task_means: Tensor
    prototypes: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: MOSOptions | None = None) -> None:
        """Install the adapted layers; SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options if options is not None else MOSOptions())
        like = model.head.weight.detach()
        for name in ("labels", "owners"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64, device=like.device))
        for name in ("task_means", "prototypes"):
            self.register_buffer(name, like.new_empty(0, like.shape[1]))
        self.learned = 0  # number of tasks

    def before_task(self, task: Task) -> None:
        """Add adapters that start as those of the last task ended; train these, or the network first."""
        super().before_task(task)
        self.requires_grad_(False)
        for layer in self.adapted.values():
            layer.add()
            if task.index:
                previous_parameters = layer.parameters_of(-2)
                for name, parameter in layer.parameters_of(-1).items():
                    parameter.data.copy_(previous_parameters[name].data)
        self._learn(base=self.phases(task) == 2)

    def choose_head(self, base: bool) -> None:
        """Train the network's head, both with the network and with adapters."""
        self.model.head.requires_grad_(True)

    def learning_rates(self) -> Mapping[str, float]:
        """Return `head_rate` for the head; 1 while the network is trained."""
        return {"model.head.*": 1.0 if self.base_learns else self.options.head_rate}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the newest adapters toward the mean of the earlier ones."""
        for layer in self.adapted.values() if self.learned else ():
            earlier = [layer.parameters_of(task) for task in range(self.learned)]
            for name, parameter in layer.parameters_of(-1).items():
                mean = torch.stack([parameters[name] for parameters in earlier]).mean(0)
                parameter.lerp_(mean, self.options.merge)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy plus the contrast, or the cross-entropy alone while the network is trained."""
        if self.base_learns:
            return self.cross_entropy(self.model(batch.x), batch)
        features = self.head_features(batch.x)
        rows = torch.cat([self.task_means, features])
        targets = torch.arange(len(rows), device=rows.device)
        contrast = F.cross_entropy(rows @ rows.T / TEMPERATURE, targets)
        return self.cross_entropy(self.model.head(features), batch) + self.options.contrast * contrast

    def head_features(self, x: Tensor) -> Tensor:
        """Return features [N, D] with the newest adapters."""
        with self.using(-1):
            return self.model.features(x)

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Merge after the last step, realign the head, and add the means of the task's classes."""
        super().after_task(task)
        means, _ = class_means(self, task.train, lambda x: self.features_by(x, (0, -1)).transpose(0, 1).flatten(1))
        classes = send(torch.tensor(task.classes, device="cpu"), self.labels.device)
        # The mean of a class without samples is NaN; 0 in its place gives cosines of 0.
        prototypes, task_means = means.to(self.prototypes)[classes].nan_to_num(nan=0.0).chunk(2, dim=1)
        self.labels = torch.cat([self.labels, classes])
        self.owners = torch.cat([self.owners, torch.full_like(classes, task.index)])
        self.prototypes = torch.cat([self.prototypes, prototypes])
        self.task_means = torch.cat([self.task_means, task_means])
        self.learned = task.index + 1

    def features_by(self, x: Tensor, tasks: tuple[int, ...]) -> Tensor:
        """Return features [T, N, D] with the adapters of T tasks; earlier blocks run once for all."""
        hidden = self.model.run(x, self.model.start, self.first)
        features = []
        for task in tasks:
            with self.using(task):
                features.append(self.model.run(hidden, self.first, None))
        return torch.stack(features)

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return log p [N, C], -inf for classes not learned, and the task [N] of the adapters used if none is given.

        If no task has been learned, or the given one has not, return the network's logits without adapters.
        """
        if not self.learned or (task is not None and task >= self.learned):
            return Prediction(self.model(x), None if task is not None else torch.full((len(x),), -1, device=x.device))
        rows = self.owners >= 0 if task is None else self.owners == task
        present = F.one_hot(self.labels, self.stream_info.classes).bool() & rows[:, None]
        absent = ~present.any(0)
        features = self.features_by(x, tuple(range(self.learned)) if task is None else (0, task))
        similarity = self.similarity(features[0]).masked_fill(~rows, float("-inf"))
        logits = self.model.head(features).masked_fill(absent, float("-inf"))  # [T, N, C]
        if task is None:
            tasks = self.owners[similarity.argmax(1)]
            if self.stream_info.seen_compete:
                owner = torch.zeros_like(absent, dtype=torch.int64).scatter_reduce(  # the latest task that has a class
                    0, self.labels, self.owners, "amax")
                next_tasks = owner[logits.argmax(2)]
                for _ in range(self.options.moves):
                    tasks = next_tasks.gather(0, tasks[None])[0]
            chosen_logits = logits[tasks, torch.arange(len(x), device=tasks.device)]
        else:
            tasks, chosen_logits = None, logits[1]
        if not self.options.ensemble:
            return Prediction(chosen_logits, tasks)
        by_class = similarity.new_full((len(x), self.stream_info.classes), float("-inf")).scatter_reduce(
            1, self.labels.expand(len(x), -1), similarity, "amax")
        probability_sum = chosen_logits.double().softmax(1) + (self.learned * by_class).softmax(1)
        return Prediction((probability_sum / 2).log(), tasks)

    def similarity(self, features: Tensor) -> Tensor:
        """Return the cosines [N, K] of features [N, D] and prototypes, in float64, which autocast does not reduce."""
        return F.normalize(features.double(), dim=1) @ F.normalize(self.prototypes.double(), dim=1).T

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return log p [N, C]."""
        return self.predict(x, task).logits
