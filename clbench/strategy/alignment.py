"""Classifier alignment (SLCA: Zhang et al. 2023, arXiv 2303.05118): train only the head again after each task.

The heads of different tasks were trained separately, so no training step has compared their outputs. After each task,
the mean m_c and the covariance S_c of the features of each of its classes are stored. From the second task on, features
are drawn from the Gaussians of all classes so far, the same number for each class. The head takes steps on the
cross-entropy of

    l / (temperature n),    n = the mean over the tasks t of the length of l_t.

Here, l are the logits of all classes so far and l_t those of task t (the paper's logit normalization). All other
parameters stay as they were trained. The next task trains the head from its state before the alignment (`recall` in the
authors' code). If the method draws no random numbers, training is therefore bit-identical to the same method without
alignment.

The paper leaves some details open. These are from the authors' code (GengDavid/SLCA, models/slca.py):

- 5 epochs with 256 features per class, drawn again in each epoch, in batches of 256: one step for each class.
- SGD with learning rate 0.01, momentum 0.9 and weight decay 5e-4, with a cosine schedule over the epochs.
- Temperature 0.1, and 1e-4 I is added to S_c.
- The means of the classes of task i are scaled by 0.9 + 0.1 i / t. Here, t is the latest task that gave a Gaussian. As
  far as we know, only the code does this (`align_shrink = 1` does not scale them).

Other implementations differ. LAMDA-PILOT has 3 epochs. Mammoth has the authors' numbers. InfLoRA's code
(methods/inflora_ca1.py) has them too, but no recall: the next alignment continues from the previous one. SLCA++
(`slca++`) scales the drawn features instead of the means. The authors' code assumes that all tasks have equally many
classes. Here, as in Mammoth, the actual task of each class is used. A class that returns gets the Gaussian of the
new task, unless this task has fewer samples of it.

Here, S_c is stored as its Cholesky factor L with S_c + 1e-4 I = L L^T. Only its D (D + 1) / 2 nonzero numbers are
stored, half of the size of S_c, and a drawn feature is m_c + L z. The authors' code stores all of S_c in float32, and
rounding may make it no longer positive definite. Random numbers are drawn on the CPU, from the trial's own generator.
The steps count as steps of the task, in addition to its budget; each trains only the head. A dry run on the meta device
counts the steps, but not their FLOPs.

Alignment needs features that hardly move (the paper's slow learner), because old Gaussians are never estimated again.
With Adam at 1e-3 the features move by more than the width of a class; with the paper's SGD (0.01, momentum 0.9) they do
not. The effect on split-mnist-5k is in docs/decisions/strategy.md. If there are few classes, 5 epochs are few steps.
More epochs help if features stay in place, and harm if they move.

Only scenario `class` compares outputs of different tasks. If the task is given, or if all tasks share their outputs,
nothing is stored or aligned, and a note in the record says so. It is not an error, so one command can request all three
scenarios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.errors import DivergedError, SpecError
from clbench.data.samples import Samples
from clbench.strategy.base import Strategy, Task
from clbench.strategy.common_options import AlignOptions
from clbench.strategy.gaussians import features_of

RIDGE = 1e-4  # added to variances
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
SHORTEST = 1e-7  # added to norms of logits

Draw = Callable[[], tuple[Tensor, Tensor]]


class Aligned(Strategy):
    """A strategy that realigns the head after each task if its options (`AlignOptions`) say so.

    It must come before the base class whose head it realigns: `class Mine(Aligned, Other)`, with
    `roles = (*Aligned.roles, ...)`. The options inherit from `AlignOptions`. A subclass that overrides `before_task` or
    `after_task` calls super's. A subclass whose head is not the model's overrides `head_of`.

    The buffers have a row for each class so far: `class_means` [K, D], `class_factors` [K, D (D + 1) / 2], and
    `unaligned_weight` [K, D] and `unaligned_bias` [K], the head before its alignment. They are registered when they are
    first needed. `met`, `met_in` and `met_samples` have the output of each row, and the task and the number of samples
    of its Gaussian.
    """

    roles: tuple[tuple[str, str], ...] = (("class_means", "class statistics"), ("class_factors", "class statistics"),
                                          ("unaligned_*", "heads"))
    recalls: ClassVar[bool] = True  # whether a task trains the head from its state before the alignment
    options: Any  # has the fields of AlignOptions, among others
    class_means: Tensor
    class_factors: Tensor
    unaligned_weight: Tensor
    unaligned_bias: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start without classes; add a note if `align = true` has no effect in this scenario."""
        super().__init__(*args, **kwargs)
        assert isinstance(self.options, AlignOptions)
        self.met: list[int] = []
        self.met_in: list[int] = []
        self.met_samples: list[int] = []
        if self.aligns and type(self).head_of is Aligned.head_of and self.model.head.bias is None:
            raise SpecError("align = true realigns a head with biases, and this model's head has none; choose align = "
                            "false, or a model whose head has biases")
        if self.options.align and not self.aligns:
            self.notes.append("align = true changes nothing here: only in scenario class are outputs of different "
                              "tasks compared")

    @property
    def aligns(self) -> bool:
        """Return whether the head is realigned."""
        return bool(self.options.align) and self.stream_info.seen_compete

    def head_of(self, output: int) -> tuple[nn.Linear, int]:
        """Return the layer and the index of its unit for an output. Default: the model's head, with the same index."""
        return self.model.head, output

    def head_features(self, x: Tensor) -> Tensor:
        """Return the inputs [N, D] of heads for inputs x [N, *input_shape]. Default: the model's features."""
        return self.model.features(x)

    def before_task(self, task: Task) -> None:
        """Restore the head from before its alignment, if the class `recalls` it."""
        if self.met and self.recalls:
            self._write_head(self.unaligned_weight, self.unaligned_bias)
        super().before_task(task)

    def after_task(self, task: Task) -> None:
        """Store the Gaussians of the task's classes, and realign the head if there are classes of other tasks."""
        super().after_task(task)
        if not self.aligns:
            return
        self._keep(task)
        units = [self.head_of(output) for output in self.met]
        with torch.no_grad():
            weight = torch.stack([layer.weight[unit] for layer, unit in units])
            bias = torch.stack([layer.bias[unit] for layer, unit in units])
        if self.recalls:
            self.register_buffer("unaligned_weight", weight)
            self.register_buffer("unaligned_bias", bias)
        if len(set(self.met_in)) > 1:
            options = self.options
            if not weight.is_meta:  # on the meta device, thousands of small steps would take minutes
                weight, bias = realigned(weight, bias, self.met_in, self._draw, options.align_epochs,
                                         options.align_samples, options.align_lr, options.align_temperature,
                                         self.stream_info.generator)
                self._write_head(self.predicting_weight(weight), bias)
            self.count_steps(options.align_epochs * len(self.met))

    def predicting_weight(self, weight: Tensor) -> Tensor:
        """Return the weights [K, D] for predictions, given the realigned weights. Default: unchanged."""
        return weight

    @torch.no_grad()
    def _write_head(self, weight: Tensor, bias: Tensor) -> None:
        """Copy the weights [K, D] and biases [K] of the classes so far into the head."""
        for output, row, number in zip(self.met, weight, bias, strict=True):
            layer, unit = self.head_of(output)
            layer.weight[unit] = row
            layer.bias[unit] = number

    @torch.no_grad()
    def _keep(self, task: Task) -> None:
        """Add a row for each new class of a task. A returning class gets a new Gaussian unless it has fewer samples."""
        outputs, means, factors = gaussians(self, task.train, task.classes, self.head_features)
        counts = [int((task.train.y == output).sum()) for output in outputs]
        if self.met:
            known = dict(zip(self.met, self.met_samples, strict=True))
            new = [i for i, output in enumerate(outputs) if counts[i] >= known.get(output, 0)]
            outputs, counts = [outputs[i] for i in new], [counts[i] for i in new]
            rows = [row for row, output in enumerate(self.met) if output not in outputs]
            means = torch.cat([self.class_means[rows], means[new]])
            factors = torch.cat([self.class_factors[rows], factors[new]])
            self.met, self.met_in, self.met_samples = (
                [values[row] for row in rows] for values in (self.met, self.met_in, self.met_samples))
        self.register_buffer("class_means", means)
        self.register_buffer("class_factors", factors)
        self.met = self.met + outputs
        self.met_in = self.met_in + [task.index] * len(outputs)
        self.met_samples = self.met_samples + counts

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Draw features [K n, D] of all classes so far, and the row of each, int64 [K n]; class by class."""
        count, shrink, tasks = self.options.align_samples, self.options.align_shrink, max(self.met_in) + 1
        features = []
        for mean, factor, task in zip(self.class_means, self.class_factors, self.met_in, strict=True):
            near = shrink + (1 - shrink) * (task + 1) / tasks
            noise = torch.randn(count, len(mean), generator=self.stream_info.generator)
            features.append(near * mean + noise.to(mean) @ lower(factor, len(mean)).T)
        rows = torch.arange(len(self.met), device=self.class_means.device).repeat_interleave(count)
        return torch.cat(features), rows


def gaussians(strategy: Strategy, samples: Samples, classes: Sequence[int], features: Callable[[Tensor], Tensor]
              ) -> tuple[list[int], Tensor, Tensor]:
    """Return the classes that have samples, their mean features [K, D] and their factors [K, D (D + 1) / 2].

    A factor is the lower triangle, row by row, of L with L L^T = S + 1e-4 I. S is the covariance of the features with
    denominator n - 1, or 0 for a single sample. It is computed in float64, and the result has the features' dtype.

    Args:
        strategy: the strategy; it is in eval mode during the computation.
        samples: raw samples.
        classes: the outputs of a task.
        features: a function from prepared inputs [n, *input_shape] to features [n, D].

    Raises:
        DivergedError: the factor of a class cannot be computed, because its features are not finite or too large.
    """
    train = samples.materialized()
    all_features = torch.cat([part for _, part in features_of(strategy, train, features)])
    places = torch.tril_indices(all_features.shape[1], all_features.shape[1], device=all_features.device)
    outputs, means, factors = [], [], []
    for output in classes:
        rows = (train.y == output).nonzero()[:, 0]
        if not len(rows):
            continue
        class_features = all_features[rows].double()
        centered = class_features - class_features.mean(0)
        covariance = centered.T @ centered / max(len(class_features) - 1, 1)
        covariance.diagonal().add_(RIDGE)
        factor, failure = torch.linalg.cholesky_ex(covariance)
        if not failure.is_meta and failure:
            raise DivergedError(f"the features of class {output} are not finite or too large for a covariance")
        outputs.append(output)
        means.append(class_features.mean(0))
        factors.append(factor[places[0], places[1]])
    return outputs, torch.stack(means).to(all_features.dtype), torch.stack(factors).to(all_features.dtype)


def lower(numbers: Tensor, size: int) -> Tensor:
    """Return the lower triangular matrix [size, size] whose entries, row by row, are `numbers`."""
    matrix = numbers.new_zeros(size, size)
    row, column = torch.tril_indices(size, size, device=numbers.device)
    matrix[row, column] = numbers
    return matrix


def realigned(weight: Tensor, bias: Tensor, tasks: Sequence[int], draw: Draw, epochs: int, batch: int, lr: float,
              temperature: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the weights [K, D] and biases [K] of a linear head after training on drawn features.

    Args:
        weight: the initial weights [K, D].
        bias: the initial biases [K].
        tasks: the task of each output.
        draw: returns features [N, D] and their rows in `weight`, int64 [N]; it is called for each epoch.
        epochs: the number of epochs.
        batch: the number of features in a step.
        lr: the initial learning rate; it decreases along a cosine from epoch to epoch.
        temperature: the temperature of `normalized` logits; None if logits are not normalized.
        generator: shuffles the features.
    """
    groups = [torch.tensor([k for k, task in enumerate(tasks) if task == distinct_task], device=weight.device)
              for distinct_task in dict.fromkeys(tasks)]
    head = [nn.Parameter(part.detach().clone()) for part in (weight, bias)]
    optimizer = torch.optim.SGD(head, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        features, outputs = draw()
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for part in torch.split(order, batch):
            with torch.enable_grad():
                logits = F.linear(features[part], head[0], head[1])
                if temperature is not None:
                    logits = normalized(logits, groups) / temperature
                loss = F.cross_entropy(logits, outputs[part])
            for parameter, gradient in zip(head, torch.autograd.grad(loss, head), strict=True):
                parameter.grad = gradient
            optimizer.step()
    return head[0].detach(), head[1].detach()


def normalized(logits: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return logits [N, K] divided by the mean of their norms over `groups`, the columns of each task."""
    lengths = [logits.index_select(1, columns).norm(dim=1) + SHORTEST for columns in groups]
    return logits / torch.stack(lengths).mean(0)[:, None]
