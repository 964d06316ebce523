"""XdG: in each task, a random share of every hidden layer's units is switched off; SI protects the shared weights.

The output of layer l in task t is multiplied, unit by unit, by a gate of 0 or 1. Gates are drawn once, when the task
begins, and are fixed from then on. Two tasks share few units: with a share of 0.8 off, a weight between two units
takes part in 4% of the tasks. The penalty of SI (synaptic intelligence, `clbench_si`) on the layers protects weights
that tasks still share.

In each layer, exactly round(gated x units) units are off, as the paper says. The authors' code (nmasse/
Context-Dependent-Gating) draws each unit by itself; that of van de Ven (GMvandeVen/continual-learning) switches off an
exact number. The latter has gates without SI by default: `strength = 0`, which still stores the importance. Each task
has a head of its own here, which SI does not cover, because no later task trains it. The authors have one head for
permuted MNIST; for other benchmarks they also study one head for each task. They train with dropout of 0.5 after each
hidden layer, which the models that fit here do not have, and with dropout of 0.2 on the inputs of permuted MNIST. EWC
instead of SI, their second variant, is left out. Their importance adds the positive part of each task's importance;
here, as in SI, the sum over tasks is kept from falling below 0.

If the task is not known, it is inferred as with the other methods that have a part per task (`infer`), which the paper
does not do. The network must be a chain of Linear and Conv2d layers with ReLU and pooling (`mlp`, `cnn`); the
units of a convolution are its channels.
"""

from __future__ import annotations

import torch
from clbench_hat.strategy import chain, gated_features
from clbench_si.strategy import SI
from torch import Tensor, nn

from clbench import Network, StreamInfo, Task
from clbench.core.device import send
from clbench.strategy.per_task import PerTaskStrategy
from clbench_xdg import XdGOptions


class XdG(PerTaskStrategy, SI):
    """The model's layers, each with gates; the buffers `gates__*` [T, units] are the units that are on in each task."""

    roles = (("gates__*", "masks"), *SI.roles, *PerTaskStrategy.roles)
    loss_is_mean = True
    parts_final = False  # later tasks change shared weights a little
    options: XdGOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: XdGOptions | None = None) -> None:
        """Start without gates. Raise a SpecError if the network is not a chain of plain layers."""
        layers = chain(model, "xdg gates")
        model.head.requires_grad_(False)  # no task trains it, so SI does not have to cover it
        super().__init__(model, stream_info, options if options is not None else XdGOptions())
        for number, (_, layer) in enumerate(layers):
            empty = torch.empty(0, len(layer.weight), dtype=torch.bool, device=layer.weight.device)
            self.register_buffer(f"gates__{number}", empty)

    def before_task(self, task: Task) -> None:
        """Add the task's head, draw its gates, and start the paths of SI in the layers."""
        PerTaskStrategy.before_task(self, task)
        self.heads[task.index].requires_grad_(False)
        self.model.blocks.requires_grad_(True)
        SI.before_task(self, task)
        self.heads[task.index].requires_grad_(True)
        for number in range(len(self.model.blocks)):
            gates = self.get_buffer(f"gates__{number}")
            units = gates.shape[1]
            task_gates = torch.zeros(1, units, dtype=torch.bool)
            task_gates[0, torch.randperm(units, generator=self.stream_info.generator)[:self.on_count(units)]] = True
            setattr(self, f"gates__{number}", torch.cat([gates, send(task_gates, gates.device)]))

    def on_count(self, units: int) -> int:
        """Return how many of a layer's units are on in each task."""
        return max(1, units - round(self.options.gated * units))

    def trainable(self) -> int:
        """Return the number of values that the task trains: only those between units that are on."""
        head = self.heads[-1]
        assert isinstance(head, nn.Linear)
        total, inputs, inputs_on = 0, 1, 1
        for layer in (*(layer for _, layer in chain(self.model)), head):
            outputs = len(layer.weight)
            outputs_on = outputs if layer is head else self.on_count(outputs)
            pair_size = layer.weight.numel() // (inputs * outputs)  # weights between two units
            total += (pair_size * inputs_on + (layer.bias is not None)) * outputs_on
            inputs, inputs_on = outputs, outputs_on
        return total

    def after_task(self, task: Task) -> None:
        """Compute the importance from the paths, and count the task as learned."""
        SI.after_task(self, task)
        PerTaskStrategy.after_task(self, task)

    def gates(self, task: int) -> list[Tensor]:
        """Return which units of each layer are on in a task, booleans [units]."""
        return [self.get_buffer(f"gates__{number}")[task] for number in range(len(self.model.blocks))]

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the task's head, with the task's gates applied."""
        gates = [gate.to(x.dtype) for gate in self.gates(task)]
        logits: Tensor = self.heads[task](gated_features(self.model, x, gates))
        return logits

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] without gates. Later tasks change these, so they are not used to infer tasks."""
        return self.model.features(x)
