"""LAE: learning, accumulation, ensemble (Gao et al. 2023, arXiv 2303.10070): an online and an offline adapter.

    learning      the online adapter and the head learn each task by cross-entropy over its own classes; from the
                  second task on, the adapter is frozen in the first part of the steps (`freeze`)
    accumulation  after each step of a task but the first:  offline <- decay offline + (1 - decay) online
    ensemble      p = max(p with the online adapter, p with the offline adapter) for each class

The offline adapter starts as the online one after the first task. Both predict with the same head, which has all
outputs. Each p is a softmax over the classes learned so far, or over those of the given task. Logits are log p.

The authors' code (gqk/LAE) was read; of the paper, its abstract and a summary. Details and differences:

- `freeze` is 3 of 5 epochs for CIFAR-100 in the code, and 30 of 50 for ImageNet-R and DomainNet. Adam continues when
  the adapter begins to learn; here a new one starts.
- The code adapts the first 5 blocks (`blocks`): by LoRA of rank 5 on keys and values, by bottlenecks of width 5
  parallel to attention with a GELU, or by prefixes. `adapter = lora` is the first. `adapter = bottleneck` is the one of
  `ease`, parallel to the MLP with a ReLU. Prefixes are left out.
- A learned factor, which starts at 1, multiplies the output of the code's adapters. Here it is constant: `scale`.
- A network without key and value layers has low-rank adapters on all layers. This is an addition of clbench.
- The code makes an average of averages with `num_emas`. All its configurations have one.
- The code leaves out the last, smaller batch of an epoch, and does not normalize images.
- The average is updated for a step when the next step begins, or when the task ends (clbench.strategy.after_steps).

With `base = task1`, the first half of the first task's steps trains the network and the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from clbench_lora import AdapterOptions
from clbench_lora.activation import activated
from clbench_lora.layers import LoRALayer
from clbench_lora.selection import adapt as adapt_lora
from clbench_lora.selection import has_parts, remarks
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.models.network import TokenNetwork
from clbench.strategy.after_steps import ActsAfterSteps
from clbench.strategy.per_task import FrozenBase, check_base
from clbench_ease import LAEOptions
from clbench_ease.bottleneck import AdaptedBlock, adapt

ONLINE, OFFLINE = 0, 1  # the numbers of the adapters


class LAE(ActsAfterSteps, FrozenBase):
    """A frozen network, two adapters on each adapted layer, and the network's own head.

    The buffer `known` [T, C] says which outputs each task has trained.
    """

    inputs_only_through_model = loss_is_mean = True
    roles = (("*.adapters.*", "adapters"), ("*.lora_*", "adapters"), ("known", "counters"))
    options: LAEOptions
    known: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: LAEOptions | None = None) -> None:
        """Install the adapted layers; SpecError if they do not fit the model."""
        options = options if options is not None else LAEOptions()
        super().__init__(model, stream_info, options)
        self.notes += check_base("lae", self.options, stream_info, model)
        model.require_body("lae adapts layers before the head")
        self.adapted: Mapping[str, AdaptedBlock | LoRALayer]
        if options.adapter == "bottleneck":
            self.adapted = adapt(model, options.width, options.scale, 0.0, "lae", options.blocks)
        else:
            lora = low_rank_options(model, options)
            self.notes += remarks(model, lora, "lae")
            if lora.layers == "all" and (lora.targets or options.blocks != LAEOptions.model_fields["blocks"].default):
                self.notes.append(f"blocks = {options.blocks} has no effect: on this network, the adapters are not "
                                  "limited to the first blocks")
            self.adapted = adapt_lora(model, lora, "lae", "width")
        self.first = model.first_with((AdaptedBlock, LoRALayer))
        self.register_buffer("known", torch.zeros_like(self.class_mask, device=model.head.weight.device))
        self.adapters = 0  # number on each layer: 0, then 1 (online), then 2 (online and offline)
        self.base_learns = False
        self.requires_grad_(False)
        self.train(self.training)

    @property
    def accumulates(self) -> bool:
        """Return whether there are offline adapters."""
        return self.adapters == 2

    def phases(self, task: Task) -> int | Sequence[float]:
        """Return the shares of the two phases of a later task; the adapter is frozen in the first phase."""
        freeze = self.options.freeze
        return (freeze, 1 - freeze) if task.index and freeze else super().phases(task)

    def before_task(self, task: Task) -> None:
        """Add the online adapter in the first task, and the offline one as its copy in the second."""
        self.known[task.index, list(task.classes)] = True
        if self.adapters < 2:
            self.adapters += 1
            for layer in self.adapted.values():
                layer.add()
                if self.accumulates:
                    self._average(layer, 0.0)
        self._learn(base=task.index == 0 and self.phases(task) == 2,
                    adapter=not (task.index and self.options.freeze))

    def base_learned(self, task: Task) -> None:
        """Train the adapter and the head in the second phase, which follows the network's or the head's."""
        self._learn(base=False, adapter=True)

    def _learn(self, base: bool, adapter: bool) -> None:
        """Train the head and, in addition, the network (`base`), the online adapters (`adapter`), or neither."""
        self.base_learns = base
        self.requires_grad_(False)
        self.model.head.requires_grad_(True)
        self.model.blocks.requires_grad_(base)
        for layer in self.adapted.values():
            for number in range(self.adapters):
                for parameter in layer.parameters_of(number).values():
                    parameter.requires_grad_(adapter and not base and number == ONLINE)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the blocks once they are frozen; their adapters may still be trained."""
        return () if self.base_learns else (self.model.blocks,)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy with the online adapters, or without adapters while the network is trained."""
        with self.using(None if self.base_learns else ONLINE):
            return self.cross_entropy(self.model(batch.x), batch)

    def after_step(self) -> None:
        """Update the offline adapters, if there are any, after the latest step."""
        for layer in self.adapted.values() if self.accumulates else ():
            self._average(layer, self.options.decay)

    @torch.no_grad()
    def _average(self, layer: AdaptedBlock | LoRALayer, decay: float) -> None:
        """Move the offline adapter of a layer toward the online one; a decay of 0 makes them equal."""
        online = layer.parameters_of(ONLINE)
        for name, offline in layer.parameters_of(OFFLINE).items():
            offline.lerp_(online[name], 1 - decay)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return log p [N, C]; before the second task, the logits with the online adapter or of the network."""
        if not self.accumulates:
            with self.using(None if self.base_learns or not self.adapters else ONLINE):
                return super().forward(x, task)
        known_outputs = self.known.any(0) if task is None else self.known[task]
        learned = known_outputs | ~known_outputs.any()  # all outputs, if the given task has not been learned
        hidden = self.model.run(x, self.model.start, self.first)  # layers before the adapters run only once
        logs = []
        for number in (ONLINE, OFFLINE):
            with self.using(number):
                logits = self.model.from_features(self.model.run(hidden, self.first, None))
            logs.append(logits - logits.masked_fill(~learned, float("-inf")).logsumexp(1, keepdim=True))
        return torch.maximum(*logs)

    def using(self, number: int | None) -> AbstractContextManager[None]:
        """Return a context in which only the adapters of a number (ONLINE or OFFLINE; None: no number) are active."""
        return activated(self.adapted.values(), () if number is None else (number,))


def low_rank_options(model: Network, options: LAEOptions) -> AdapterOptions:
    """Return options of adapters on keys and values of the first blocks, or on all layers if a model has none."""
    rank_options = {"rank": options.width, "alpha": options.scale * options.width}
    if not has_parts(model, ("k", "v")):
        return AdapterOptions(**rank_options)
    layer_pattern = f"blocks\\.({'|'.join(str(1 + block) for block in range(options.blocks))})\\..*"
    return AdapterOptions(**rank_options, targets=["k", "v"],
                          layers=layer_pattern if isinstance(model, TokenNetwork) else "all")
