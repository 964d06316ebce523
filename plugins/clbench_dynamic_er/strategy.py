"""DER (Yan et al. 2021, "Dynamically Expandable Representation"): each task adds a feature extractor to one head.

It is not `der`, which is dark experience replay. In task t the extractors of earlier tasks are frozen, in eval mode. A
new one begins as a copy of the latest. The head reads the features of all extractors,

    logits = W_1 f_1(x) + ... + W_t f_t(x) + b,

and all of W and b are trained. An auxiliary head on f_t alone has an output for each class of the task and one for all
others. The loss on new samples and exemplars is

    cross-entropy over all classes so far + lambda_a cross-entropy of the auxiliary head

After each task but the first, the weights of new classes are scaled to the mean length of those of old classes, as in
`wa` (`align_weights`). This is PyCIL's version (models/der.py). Differences:

- The paper prunes each new extractor with learned masks of channels. Neither the authors' published code
  (Rhyssiyan/DER-ClassIL.pytorch) nor PyCIL does, and the masks are left out here. The method thus stores a whole
  network per task; reports count it.
- In place of the alignment, the authors' code draws a new head after each task and trains it for 30 epochs on
  equally many samples of each class, with logits divided by 5. This second stage is left out here.
- The authors' code draws a whole new head for each task as well (`reuse_oldfc: False`), and warms up for 10 epochs.
  PyCIL keeps old weights, as here.
- New weights are drawn as torch draws those of a linear head. PyCIL draws from a wider range, with zeros as biases.
- In the authors' code, the rate falls to a tenth after 100 and 120 of 170 epochs, with weight decay 5e-4. The published
  recipe is theirs, without the warm-up. PyCIL has 80, 120 and 150 epochs in later tasks, with weight decay 2e-4.
- Exemplars are herded on the normalized features of all extractors, and mixed in (clbench.strategy.herding). The codes
  append them to the task's samples. The paper stores 2000; by default, the classes so far share `capacity` here.

Beyond the paper: if the task is known, labels compete within a task. The alignment applies to new classes that compete
with old ones, which happens only in scenario `class`. If all tasks share all classes (scenario `domain`), the
auxiliary head's output for other classes has no samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, Options, StreamInfo, Task
from clbench.strategy.herding import HerdedMemory
from clbench.strategy.per_task import output_places
from clbench_dynamic_er import DynamicEROptions


class AuxiliaryHead(nn.Linear):
    """Logits [N, K + 1] of features [N, D] for a task's K classes and, as the last, for all other classes.

    Args:
        features: D.
        classes: the task's outputs.
        outputs: number of all outputs, C.
        like: a parameter whose device and type the head takes.
    """

    place: Tensor

    def __init__(self, features: int, classes: Sequence[int], outputs: int, like: Tensor) -> None:
        """Initialize as torch does for any linear layer."""
        super().__init__(features, len(classes) + 1, device=like.device, dtype=like.dtype)
        # A buffer, not an attribute: stacked seeds may have their classes in different orders.
        self.register_buffer("place", output_places(classes, outputs).to(like.device), persistent=False)

    def loss(self, features: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy for features [N, D] of samples with labels y [N], a scalar."""
        return F.cross_entropy(self(features), self.place.index_select(0, y))


class DynamicER(HerdedMemory):
    """The model's own blocks are the first extractor, `extractors` the later ones; `parts` are W_2, W_3 and so on."""

    method = "dynamic-er"
    loss_is_mean = True
    roles = (("model.blocks.*", "columns"), ("extractors.*", "columns"), ("model.head.*", "heads"),
             ("parts.*", "heads"), ("auxiliary.*", "heads"), *HerdedMemory.roles)
    head_parameters: ClassVar[tuple[str, ...]] = ("model.head.*", "parts.*", "auxiliary.*")
    options: DynamicEROptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with one extractor and no exemplars.

        Raises:
            SpecError: the model is a head alone, or as in `HerdedMemory`.
        """
        super().__init__(model, stream_info, options or DynamicEROptions())
        model.require_body("dynamic-er adds layers before the head", "er, which replays samples to a head")
        self.extractors, self.parts = nn.ModuleList(), nn.ModuleList()
        self.auxiliary: AuxiliaryHead | None = None
        self.met: list[int] = []  # classes of the tasks so far, including the current one
        self.old: list[int] = []  # classes of earlier tasks
        self.new: list[int] = []  # classes of the current task that no earlier task has

    @property
    def columns(self) -> list[nn.ModuleList]:
        """Return the blocks of all extractors."""
        return [self.model.blocks, *self.extractors]

    def before_task(self, task: Task) -> None:
        """From the second task on, freeze the extractors, and add one with its part of the head."""
        super().before_task(task)
        self.old = self.met
        self.new = [c for c in task.classes if c not in self.met]
        self.met = self.met + self.new
        if not task.index:
            return
        head, latest = self.model.head, self.columns[-1]
        self.extractors.append(copy.deepcopy(latest).requires_grad_(True))
        for blocks in self.columns[:-1]:
            blocks.requires_grad_(False)
        factory_kwargs = {"device": head.weight.device, "dtype": head.weight.dtype}
        self.parts.append(nn.Linear(head.in_features, head.out_features, bias=False, **factory_kwargs))
        self.auxiliary = AuxiliaryHead(head.in_features, task.classes, self.stream_info.classes, head.weight)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the extractors before the newest."""
        return self.columns[:-1]

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features [N, D] of each extractor for inputs x [N, *input_shape]."""
        features = [self.model.features(x)]
        for blocks in self.columns[1:]:
            out = x
            for block in blocks:
                out = block(out)
            features.append(out)
        return features

    def unit_features(self, x: Tensor) -> Tensor:
        """Return the normalized features [N, t D] of inputs [N, *input_shape], of all extractors together."""
        return F.normalize(torch.cat(self.features(x), 1))

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits [N, C] of the features [N, D] of each extractor."""
        logits: Tensor = self.model.head(features[0])
        for part, column in zip(self.parts, features[1:], strict=True):
            logits = logits + part(column)
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy; from the second task on, add the auxiliary loss."""
        features = self.features(batch.x)
        loss = self.cross_entropy(self.logits(features), batch)
        if self.auxiliary is None:
            return loss
        return loss + self.options.auxiliary * self.auxiliary.loss(features[-1], batch.y)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the logits [N, C] for inputs x [N, *input_shape]."""
        return self.logits(self.features(x))

    def after_task(self, task: Task) -> None:
        """Align the head, and choose exemplars."""
        if self.old and self.new and self.options.align_weights and self.stream_info.seen_compete:
            self.align(self.old, self.new)
        super().after_task(task)

    @torch.no_grad()
    def align(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Scale the weights of new outputs so that their mean length is that of the weights of old outputs."""
        weights = [self.model.head.weight, *(part.get_parameter("weight") for part in self.parts)]
        lengths = torch.cat(weights, 1).norm(dim=1)
        gamma = lengths[list(old)].mean() / lengths[list(new)].mean()
        for weight in weights:
            weight[list(new)] *= gamma
