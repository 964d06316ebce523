"""Adversarial continual learning: a shared module that every task trains, and a private module and head for each.

    cross-entropy(head_t(S(x), P_t(x)), y) + cross-entropy(D(R(S(x))), t) + cross-entropy(D(z'), noise)
        + orthogonality |S^T P_t / N|^2

S should represent what tasks have in common. The discriminator D learns to predict from S(x) the task of a sample. R,
the gradient reversal of Ganin & Lempitsky (arXiv 1409.7495) that the paper names, passes D's gradient to S, multiplied
by -adversarial. D also learns to separate features from noise z' ~ N(0, 1), which has a label of its own. Without this
noise, D would see a single label if no samples of earlier tasks are stored. The last term (Bousmalis et al. 2016, arXiv
1608.06019) separates private from shared features. Rows of S and P are one sample's features at unit length, and the
norm is the Frobenius norm. After a task, its private module and head are frozen. S continues to train, so old tasks can
be forgotten.

S is the model without its head, for any model. P_t is a narrow network of the same kind that reads the inputs. If the
model has convolutions, P_t has stages of convolution and pooling (the model `cnn`, with half as many channels at first
as `private_width`) down to maps of about 8 x 8, and a dense layer. Otherwise, P_t is one dense layer, like the authors'
for MNIST. P_t therefore depends only on the model's inputs. Heads are linear like those of the other methods
(the authors': two hidden layers).

With `memory`, about as many stored samples as new ones are appended to each batch, equally many of each earlier task.
All terms include them. Each stored sample passes through the private module and the head of its own task. The authors
mix stored samples into the epoch and pass them through the new task's private module.

Differences: the authors take several steps of S and then one step of D, which has a learning rate and an optimizer of
its own. With gradient reversal, one step does both, as in Ganin & Lempitsky, and the training configuration has one
optimizer. D is new for each task, as in the authors' code. In the last term, their code takes the mean of
(s_i . p_j)^2 over pairs of samples, while the paper has S^T P, as here. Without this term (`diff: no`, their
Split-MNIST), their code has no reversal either.

The gain depends on the optimizer. The authors use SGD for Split-MNIST, with lr 1e-3 (reduced if the validation loss
stalls), momentum 0.9 and weight decay 0.01. They train batches of 32, up to 200 epochs, 20 steps of S for each step of
D, with dropout in S and in the heads. Old tasks are predicted with their frozen private modules and heads, and with the
current S. On split-mnist-5k (scenario task, mlp, two seeds) with Adam 1e-3 and 10 epochs, acl equals `naive`: ACC 89.6
and 89.7, forgetting 11 for both. With `--optimizer sgd --lr 1e-3 --momentum 0.9 --weight-decay 0.01 --batch-size 32
--epochs 50`, acl has ACC 97.6 and forgetting 0.6 (one seed), and naive has 87.8 and 13. About half of that gain comes
from the private modules: with `private_width = 1`, acl has 92.4 and 7 (one seed).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, Samples, StreamInfo, Task
from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.models.builtin import CNNOptions
from clbench.models.small import cnn
from clbench.strategy.per_task import PerTaskStrategy
from clbench.strategy.replay import SampleMemory
from clbench_acl import ACLOptions

UNITS = 175  # width of the discriminator's hidden layers, as in the authors' code
NOISE = 0  # the discriminator's label for z'; that of task t is t + 1
SIDE = 8  # side of the maps after a private module's last convolution, if four stages are enough


class ACL(SampleMemory, PerTaskStrategy):
    """The model's blocks are S, `private` holds P_t, `heads` their heads; `noise` [N, D] is drawn for each batch."""

    roles = (("private.*", "private"), ("discriminator.*", "discriminator"), *SampleMemory.roles,
             *PerTaskStrategy.roles)
    options: ACLOptions
    noise: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: ACLOptions | None = None) -> None:
        """Start with no private modules; SpecError on texts, or if the model has no shared module to train."""
        super().__init__(model, stream_info, options if options is not None else ACLOptions())
        model.require_body("acl trains a module that tasks share before the head", "shared-private")
        if stream_info.is_text:
            raise SpecError("acl: a private module reads a sample's numbers or pixels, and a text has none; choose "
                            "another method, or vectors of the texts (clbench embed)")
        self.private = nn.ModuleList()
        self.discriminator: nn.Module = nn.Identity()
        self.kept: list[int] = []  # number of stored samples of each task
        self.register_buffer("noise", self.model.head.weight.new_empty(0), persistent=False)

    @property
    def head_inputs(self) -> int:
        """Return the width of the shared and private features together."""
        return super().head_inputs + self.options.private_width

    def before_task(self, task: Task) -> None:
        """Add the task's head and private module, and a new discriminator; the shared module continues to train."""
        super().before_task(task)
        like, width = self.model.head.weight, super().head_inputs
        private = private_module(self.model, self.stream_info.input_shape, self.options.private_width)
        self.private.append(private.to(like))
        self.discriminator = nn.Sequential(nn.Linear(width, UNITS), nn.LeakyReLU(), nn.Linear(UNITS, UNITS),
                                           nn.Linear(UNITS, task.index + 2)).to(like)
        self.model.blocks.requires_grad_(True)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the private modules of learned tasks."""
        return self.private[:self.learned]

    def prepare_batch(self, batch: Batch) -> Batch:
        """Append samples of earlier tasks to the batch, task by task, and draw noise for it."""
        counts = self.replays(len(batch.y))
        if sum(counts):
            slots = [start + torch.randperm(size, generator=self.stream_info.generator)[:count]
                     for start, size, count in zip(self._starts(), self.kept, counts, strict=True)]
            batch = batch.extended(self.memory.take(send(torch.cat(slots), self.memory_y.device)))
        like = self.model.head.weight
        noise = torch.randn(len(batch.y), self.model.head.in_features, generator=self.stream_info.generator)
        self.noise = send(noise.to(like.dtype), like.device)
        return batch

    def replays(self, new: int) -> list[int]:
        """Return the number of replayed samples of each earlier task for a number of new samples."""
        return [min(size, math.ceil(new / len(self.kept))) for size in self.kept]

    def _starts(self) -> list[int]:
        """Return the index in the memory at which each task's samples begin."""
        return [sum(self.kept[:task]) for task in range(len(self.kept))]

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of all four terms; replayed samples use the private modules and heads of their tasks."""
        new_count = len(batch.y) - batch.replayed
        sizes = [new_count, *self.replays(new_count)] if batch.replayed else [new_count]
        tasks = [batch.task, *range(len(sizes) - 1)]
        shared = self.model.features(batch.x)
        private = torch.cat([self.private[t](x) for t, x in zip(tasks, torch.split(batch.x, sizes), strict=True)])
        parts = torch.split(torch.cat([shared, private], 1), sizes)
        logits = torch.cat([self.heads[t](features) for t, features in zip(tasks, parts, strict=True)])
        task_logits = self.discriminator(reversed_gradient(shared, self.options.adversarial))
        noise = self.discriminator(self.noise)
        return (self.cross_entropy(logits, batch) + F.cross_entropy(task_logits, batch.tasks + 1)
                + F.cross_entropy(noise, torch.full_like(batch.tasks, NOISE))
                + self.options.orthogonality * overlap(shared, private))

    def after_task(self, task: Task) -> None:
        """Count the task as learned, and store some of its samples."""
        super().after_task(task)
        self.train(self.training)
        if self.options.memory:
            samples = task.train.subset(self.options.memory, self.stream_info.generator).materialized()
            samples = samples.take(torch.arange(len(samples), device=samples.index_device))
            self.store(Samples.concat(self.memory, samples) if self.kept else samples)
            self.kept.append(len(samples))

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the current shared module with the task's private module and head."""
        return self._answer(x, self.model.features(x), task)

    def learned_logits(self, x: Tensor) -> Tensor:
        """Return the logits [learned tasks, N, C] of all private parts; the shared features are computed once."""
        shared = self.model.features(x)
        return torch.stack([self._answer(x, shared, task) for task in range(self.learned)])

    def _answer(self, x: Tensor, shared: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of a task's private module and head."""
        logits: Tensor = self.heads[task](torch.cat([shared, self.private[task](x)], 1))
        return logits

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the shared features [N, D]; later tasks change them, so no task is inferred from them."""
        return self.model.features(x)


def private_module(model: Network, input_shape: tuple[int, ...], width: int) -> nn.Module:
    """Return a narrow network of the model's kind, which maps inputs to `width` nonnegative numbers."""
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        stages = math.ceil(math.log2(max(input_shape[1:]) / SIDE))
        options = CNNOptions(channels=max(1, width // 2), depth=min(max(1, stages), 4))
        return nn.Sequential(cnn(options, input_shape, width), nn.ReLU())
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.ReLU())


def reversed_gradient(x: Tensor, weight: float) -> Tensor:
    """Return x; the backward pass multiplies its gradient by -weight."""
    return x.detach() - weight * (x - x.detach())


def overlap(shared: Tensor, private: Tensor) -> Tensor:
    """Return |S^T P / N|^2 of features [N, D] and [N, E], a scalar in [0, 1]; rows of S and P have unit length."""
    s, p = F.normalize(shared), F.normalize(private)
    return (s.T @ p / len(s)).square().sum()
