"""The common part of the analytic classifiers: sums over features of a frozen network.

These are `ncm`, `simplecil`, `aper`, `slda`, `ranpac`, `fecam`, `ridge` and `acil`, which stores an inverse instead of
the sums.

Sums do not depend on the order of samples or tasks (except for rounding, which float64 keeps small). Later tasks change
what was learned only through these sums. Forgetting is therefore limited to what a rule loses because it has to
separate more classes.

If no weights are given (`base = task1`), the first task trains the whole network as `naive` does, with its steps and
its head. The features are then bit-identical to those of `naive` after its first task. From then on, nothing is trained
by gradients, and the budget of the other tasks remains unused. Features are those of the training samples without
augmentation. A model that is a head alone (`linear`) has nothing to train: features are the inputs, in the first task
too.

With `adapt = lora`, the first task trains low-rank adapters in a pretrained network, and the network's head, as
`seq-lora` does, with all of its steps. The network is then bit-identical to that of `seq-lora` after its first task.
The adapters are separate from the weights, which do not change. `both = true` can therefore also use the features of
the pretrained network.

With `adapt = bottleneck`, the adapters are AdaptFormer's (`clbench_ease.bottleneck`): 64 numbers wide, scale 0.1, with
dropout 0.1. `ranpac` and `aper` have them by default in a pretrained vision transformer (`auto`).

- RanPAC adapts the network in the first session by AdaptFormer, VPT or SSF. APER (Zhou et al. 2023, arXiv 2303.07338,
  first named ADAM) uses these, batch norm or full fine-tuning. VPT, SSF, batch norm and full fine-tuning are left out
  here, and LoRA is not theirs. APER reads the features of the pretrained and the adapted network (`both`), RanPAC those
  of the adapted one.
- Their codes use SGD with learning rate 0.01, momentum 0.9, weight decay 5e-4, batches of 48 and a cosine over 20
  epochs. `recipe=published` is that without the budget.
- Their head in this session is the cosine times a learned number (`CosineLinear`); here it is the network's own. After
  the first task, the head is used only for given tasks that have not been learned yet.

If boundaries are hidden (`ncm`, `simplecil`, `slda`, `ridge`, `acil`, on a given base), batches are learned as they
pass, and the rule is fitted again after each. In the end, the result is the same as if all samples were learned at
once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from clbench_ease.bottleneck import AdaptedBlock
from clbench_lora.activation import activated
from clbench_lora.layers import LoRALayer
from torch import Tensor, nn

from clbench import Batch, Network, Samples, Strategy, StreamInfo, Task
from clbench.strategy.gaussians import chunk_size
from clbench.strategy.per_sample_gradients import evaluating
from clbench.strategy.per_task import check_base
from clbench_prototypes import AdaptOptions
from clbench_prototypes.first_session import feature_width, install, settle

CHUNK = 1024  # samples per step of a pass


class ClosedForm(Strategy, ABC):
    """A frozen network, whose D features are mapped to K numbers, and a rule that computes logits from these.

    The buffers `sums` [C, K] and `counts` [C] are the sums of mapped features and the number of samples by class. If no
    task is learned yet, or a given task is not, the network's own logits are returned.

    Args:
        model: the network, not yet changed by any method.
        stream_info: facts about the stream.
        options: `base`, `adapt` and the method's own.
        width: K; None for D.
    """

    method: ClassVar[str]
    has_first_session: ClassVar[bool] = False  # whether the paper's method adapts a pretrained network
    roles: tuple[tuple[str, str], ...] = (("*.lora_*", "adapters"), ("*.adapters.*", "adapters"),
                                          ("weight", "heads"), ("bias", "heads"), ("sums", "prototypes"),
                                          ("counts", "prototypes"), ("moment", "second moments"))
    options: AdaptOptions
    sums: Tensor
    counts: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: AdaptOptions,
                 width: int | None = None) -> None:
        """Start with empty sums."""
        options = settle(options, model, stream_info)
        super().__init__(model, stream_info, options)
        self.notes += check_base(self.method, self.options, stream_info, model)
        self.learned = 0
        self.base_learns = self.options.base == "task1" and model.has_body
        self.adapters_learn = False
        self.model.requires_grad_(self.base_learns)
        self.adapted: Mapping[str, LoRALayer | AdaptedBlock] = install(self.method, model, self.options, self.notes)
        if self.has_first_session and self.options.adapt == "none" and self.options.base == "pretrained":
            self.notes.append(f"{self.method}: without the first session of the paper (adapt = none)")
        width = width or feature_width(model, self.options)
        self.register_buffer("sums", model.head.weight.new_zeros(stream_info.classes, width, dtype=torch.float64))
        self.register_buffer("counts", self.sums.new_zeros(stream_info.classes))
        self.train(self.training)

    @property
    def inputs_only_through_model(self) -> bool:  # type: ignore[override]
        """Return whether inputs only run through the model as it is. With `both`, they also run without adapters."""
        return not self.options.both

    @abstractmethod
    def score(self, mapped: Tensor) -> Tensor:
        """Return logits [N, C] of mapped features [N, K], float64. Logits of classes not seen yet are ignored."""

    def refit(self) -> None:
        """Fit the rule again to the current sums. By default, do nothing: the rule reads the sums."""

    def map(self, features: Tensor) -> Tensor:
        """Return the rule's inputs [N, K] for features [N, D], both float64. Default: the features."""
        return features

    def add(self, mapped: Tensor, labels: Tensor) -> None:
        """Add mapped features [N, K] with one-hot labels [N, C], float64, to the sums."""
        self.sums += labels.T @ mapped
        self.counts += labels.sum(0)

    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """Add a task's features [N, D] with one-hot labels [N, C] to the stored statistics. Default: to the sums."""
        for mapped, part_labels in self.chunks(features, labels):
            self.add(mapped, part_labels)

    def chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features [N, D] in chunks, mapped to [n, K], with their labels [n, C]."""
        for chunk, part_labels in zip(torch.split(features, CHUNK), torch.split(labels, CHUNK), strict=True):
            yield self.map(chunk.double()), part_labels

    def features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] of inputs x: the network's, or the pretrained and the adapted network's."""
        features = self.model.features(x)
        if not self.options.both:
            return features
        with activated(self.adapted.values(), ()):
            return torch.cat([self.model.features(x), features], 1)

    def before_task(self, task: Task) -> None:
        """In the first task, add adapters and train them and the head, if the options ask for adapters."""
        self.adapters_learn = bool(self.adapted) and task.index == 0
        if self.adapters_learn:
            for layer in self.adapted.values():
                layer.add()
                layer.active = (0,)
            self.model.head.requires_grad_(True)
            self.train(self.training)

    def phases(self, task: Task) -> int:
        """Return 1 for a first task that trains the network or adapters, else 0: nothing is trained."""
        return int((self.base_learns or bool(self.adapted)) and task.index == 0)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the network once it is frozen, or its blocks while only adapters in them and the head are trained."""
        if self.base_learns:
            return ()
        return (self.model.blocks,) if self.adapters_learn else (self.model,)

    def train(self, mode: bool = True) -> ClosedForm:
        """Set the mode. The dropout of bottlenecks follows it only while they are trained."""
        super().train(mode)
        for layer in self.adapted.values() if self.adapters_learn else ():
            if isinstance(layer, AdaptedBlock):
                layer.adapters.train(mode)
        return self

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Freeze the network permanently, learn the task's features, and fit the rule again."""
        self.base_learns = self.adapters_learn = False
        self.model.requires_grad_(False)
        self.train(self.training)
        if self.stream_info.boundaries:
            self.learn(task.train, task.index + 1)

    @torch.no_grad()
    def observe(self, batch: Batch) -> None:
        """Learn a batch immediately, because sums need no task boundaries."""
        self.learn(Samples(batch.x, batch.y, batch.tasks), 1)

    def learn(self, samples: Samples, learned: int) -> None:
        """Learn the features of raw samples and fit the rule again; `learned` tasks are then complete."""
        with evaluating(self):
            chunks = samples.chunks(chunk_size(self.stream_info))
            features = torch.cat([self.features(self.stream_info.prepare(part.x)) for part in chunks])
        self.take_in(features, F.one_hot(samples.y, self.stream_info.classes).to(features.device, torch.float64))
        self.refit()
        self.learned = learned

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] by the rule, -inf for classes not seen yet; or the network's own (see the class)."""
        if not self.learned or (task is not None and task >= self.learned):
            return super().forward(x, task)
        # In float64, as the rule was fitted; autocast does not change this dtype.
        return self.score(self.map(self.features(x).double())).masked_fill(self.counts == 0, float("-inf"))

    @property
    def means(self) -> Tensor:
        """Return the class means [C, K] of mapped features, 0 for classes not seen yet."""
        return self.sums / self.counts.clamp(min=1)[:, None]


class LinearRule(ClosedForm):
    """The rule is linear: `weight` [C, K] and `bias` [C], fitted after each task."""

    def __init__(self, model: Network, stream_info: StreamInfo, options: AdaptOptions,
                 width: int | None = None) -> None:
        """Start with a rule of zeros."""
        super().__init__(model, stream_info, options, width)
        self.weight = nn.Parameter(self.sums.clone(), requires_grad=False)
        self.bias = nn.Parameter(self.counts.clone(), requires_grad=False)

    @abstractmethod
    def rule(self) -> tuple[Tensor, Tensor]:
        """Return weight [C, K] and bias [C], computed from the sums. Rows of classes not seen yet are ignored."""

    def refit(self) -> None:
        """Copy the current rule to `weight` and `bias`."""
        weight, bias = self.rule()
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def score(self, mapped: Tensor) -> Tensor:
        """Return W h + b for mapped features h."""
        return F.linear(mapped, self.weight, self.bias)


class SecondOrder(LinearRule):
    """Also sums second moments: `moment` [K, K] is the sum of h h^T over mapped features h, empty before any task."""

    moment: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: AdaptOptions,
                 width: int | None = None) -> None:
        """Start with empty sums. The moment gets its size later, so that a stack has no copies of zeros."""
        super().__init__(model, stream_info, options, width)
        self.register_buffer("moment", self.sums.new_empty(0, 0))

    def add(self, mapped: Tensor, labels: Tensor) -> None:
        """Add mapped features [N, K] with one-hot labels [N, C], float64, to the sums and the second moment."""
        super().add(mapped, labels)
        if not len(self.moment):
            self.moment = self.sums.new_zeros(2 * (mapped.shape[1],))
        self.moment.addmm_(mapped.T, mapped)
