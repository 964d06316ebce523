"""HAT: each task learns a mask of the units of every layer, and later tasks do not change the outputs of used units.

The output of layer l is multiplied, unit by unit, by a_l = sigmoid(s e_l), where e_l is an embedding of the task that
is trained. In each pass, s rises from 1 / s_max to s_max with the batches b = 1 .. B (equation 3):

    s = 1 / s_max + (s_max - 1 / s_max) (b - 1) / (B - 1)

At test time, s is s_max, so that masks are almost binary. Let u_l be the largest mask of each unit so far. The loss has
an additional term

    strength  sum_l sum_i a_li (1 - u_li)  /  sum_l sum_i (1 - u_li)

which makes tasks use few new units, and costs nothing for the reuse of old ones (equation 5). Gradients are multiplied:

- those of a weight from unit j to unit i by 1 - min(u_l,i, u_l-1,j) (equation 2),
- those of a bias by 1 - u_l,i,
- those of embeddings by s_max (cosh(s e) + 1) / (s (cosh(e) + 1)), with s e within +-50. This gives them the size that
  they have at s = 1 (equation 4).

Embeddings begin as draws from a normal distribution and stay within +-6. Each task has a head.

A weight between two units whose masks are exactly 1 in floating point gets the gradient 0. If all masks of a task are
exactly 0 or 1, its predictions never change, bit for bit. This needs an optimizer that does not change weights with
gradient 0: one without weight decay, whose moments do not outlive the task (`optimizer_state = reset`). A mask between
0 and 1 scales the gradient. With SGD, the paper's optimizer, this protects a weight in proportion. With Adam it hardly
does, because Adam's steps do not depend on the scale of gradients. The authors train with SGD, learning rate 0.05
(divided by 3 when the loss on held-out data does not fall), batches of 64 and dropout.

Differences from the authors' code (joansj/hat): theirs has s = 1 / s_max + (s_max - 1 / s_max) i / N, with i of N
samples before the batch, so that s ends below s_max. Here s is the paper's. If a task has fewer steps than a pass, s
rises over these steps. If batches are repeated (`repeats`), each step counts as a batch, and s rises `repeats` times in
a pass. Their clipping of the norm of gradients at 10,000 is left out. They divide by 0 if all units are used; here the
penalty is then 0. They test the weights of the epoch that was best on held-out data.

If the task is not known, it is inferred as in the other methods with a part per task (`infer`); the paper does not
infer tasks. `prototype` then uses the features after the first task's masks. These features stay the same only as far
as those masks are saturated. The network must be a chain of Linear and Conv2d layers with ReLU and pooling (`mlp`,
`cnn`). With normalization or residual connections, units would change in spite of their masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.granted import PhaseSpec
from clbench.strategy.per_task import PerTaskStrategy
from clbench_hat import HATOptions

REACH = 6.0  # largest absolute value of an embedding's entries
STEEPEST = 50.0  # largest |s e| in the factor for the gradients of embeddings
AFTER = nn.ReLU | nn.MaxPool2d | nn.Flatten | nn.Identity  # may follow a layer: they keep units apart


class HAT(PerTaskStrategy):
    """The model's layers followed by masks; the buffers `used__*` are u_l, and `s` is the s of the current step."""

    roles = (("embeddings.*", "masks"), ("used__*", "masks"), *PerTaskStrategy.roles)
    loss_is_mean = True
    parts_final = False  # masks are only nearly 0 or 1, so later tasks change old predictions a little
    options: HATOptions
    s: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: HATOptions | None = None) -> None:
        """Mark all units as free; SpecError if the network is not a chain of plain layers."""
        super().__init__(model, stream_info, options if options is not None else HATOptions())
        self.embeddings = nn.ModuleList()  # for each task, one vector per layer
        self.samples = 0  # number of the task's samples
        self.batches, self.batch = 1, 0  # number of batches in a pass, and how many of them are done
        for number, (_, layer) in enumerate(chain(model)):
            self.register_buffer(f"used__{number}", layer.weight.new_zeros(len(layer.weight)))
        self.register_buffer("s", model.head.weight.new_tensor(self.options.s_max), persistent=False)

    def before_task(self, task: Task) -> None:
        """Add the task's head and its embeddings, and make the layers trainable."""
        super().before_task(task)
        self.samples = len(task.train)
        self.model.blocks.requires_grad_(True)
        self.embeddings.append(nn.ParameterList(nn.Parameter(torch.randn_like(used)) for used in self.used()))

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Store the number of steps."""
        self.batches, self.batch = int(phase.steps), 0

    @torch.no_grad()
    def prepare_batch(self, batch: Batch) -> Batch:
        """Set s for the step, clip the embeddings, and return the batch unchanged."""
        if self.batch == 0:
            self.batches = min(self.batches, math.ceil(self.samples / len(batch.y)))
        share = self.batch / (self.batches - 1) if self.batches > 1 else 1.0
        low = 1 / self.options.s_max
        self.s.fill_(low + (self.options.s_max - low) * share)
        self.batch = (self.batch + 1) % self.batches
        self._bound()
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the task's head after the gated layers, plus the penalty on new units."""
        masks = [(self.s * e).sigmoid() for e in self.embedding(batch.task)]
        free = [1 - used for used in self.used()]
        new_units = torch.stack([(mask * unused).sum() for mask, unused in zip(masks, free, strict=True)]).sum()
        all_free = torch.stack([unused.sum() for unused in free]).sum()
        penalty = new_units / all_free.clamp_min(torch.finfo(all_free.dtype).tiny)
        logits = self.heads[batch.task](gated_features(self.model, batch.x, masks))
        return self.cross_entropy(logits, batch) + self.options.strength * penalty

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reduce gradients that would change used units; give those of embeddings the size that they have at s = 1."""
        edited = dict(gradients)
        previous_used: Tensor | None = None
        for used, (name, layer) in zip(self.used(), chain(self.model), strict=True):
            protection = used[:, None]
            if previous_used is not None:
                inputs = layer.weight.shape[1]
                protection = torch.minimum(protection, spread(previous_used, inputs)[None])
            weight, bias = (f"model.{name}.{part}" for part in ("weight", "bias"))
            trailing = [1] * (layer.weight.dim() - 2)
            edited[weight] = gradients[weight] * (1 - protection).view(*protection.shape, *trailing)
            if bias in gradients:
                edited[bias] = gradients[bias] * (1 - used)
            previous_used = used
        task = len(self.heads) - 1
        for number, e in enumerate(self.embedding(task)):
            name = f"embeddings.{task}.{number}"
            grown = ((self.s * e.detach()).clamp(-STEEPEST, STEEPEST).cosh() + 1) / (e.detach().cosh() + 1)
            edited[name] = gradients[name] * (self.options.s_max / self.s * grown)
        return edited

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Mark the task's units as used."""
        self._bound()
        for used, mask in zip(self.used(), self.masks(task.index), strict=True):
            used.copy_(torch.maximum(used, mask))
        super().after_task(task)

    def embedding(self, task: int) -> list[nn.Parameter]:
        """Return a task's embedding for each layer."""
        return list(self.embeddings[task].parameters())

    def used(self) -> list[Tensor]:
        """Return the largest mask so far of each layer's units."""
        return [self.get_buffer(f"used__{number}") for number in range(len(self.model.blocks))]

    def masks(self, task: int) -> list[Tensor]:
        """Return a task's masks of each layer's units, as at test time."""
        return [(self.options.s_max * e).sigmoid() for e in self.embedding(task)]

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the task's head after its masks."""
        logits: Tensor = self.heads[task](gated_features(self.model, x, self.masks(task)))
        return logits

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] after the first task's masks."""
        return gated_features(self.model, x, self.masks(0))

    def _bound(self) -> None:
        """Clip the current task's embeddings to [-REACH, REACH]."""
        for e in self.embedding(len(self.heads) - 1):
            e.clamp_(-REACH, REACH)


def gated_features(model: Network, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return the features [N, D] of a chain of layers whose outputs are multiplied by masks, one for each layer."""
    for block, mask in zip(model.blocks, masks, strict=True):
        x = block(x)
        x = x * (spread(mask, x.shape[1]) if x.dim() == 2 else mask[:, None, None])
    return x


def spread(mask: Tensor, size: int) -> Tensor:
    """Repeat a mask of channels [C] for the `size` numbers of flattened maps, which are ordered by channel."""
    return mask[:, None].expand(-1, size // len(mask)).reshape(size)


def chain(model: Network, does: str = "hat masks") -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Return the layer of each block, by name.

    `does` names the method and its action on units, for the error.

    Raises:
        SpecError: a block is not one layer without groups, followed by modules that keep units apart.
    """
    model.require_body(f"{does} units before the head")
    masked_layers = []
    for number, block in enumerate(model.blocks):
        parts = [(name, module) for name, module in block.named_modules() if not any(module.children())]
        layers = [(name, module) for name, module in parts if isinstance(module, nn.Linear | nn.Conv2d)]
        others = [type(module).__name__ for _, module in parts if not isinstance(module, nn.Linear | nn.Conv2d | AFTER)]
        if others or len(layers) != 1 or getattr(layers[0][1], "groups", 1) != 1:
            raise SpecError(f"{does} the units of a chain of Linear and Conv2d layers with ReLU and pooling; block "
                            f"{number} of this model has {', '.join(sorted(set(others))) or 'other layers'}; choose "
                            "model = mlp or cnn, or packnet, which shares out single weights of any network")
        masked_layers.append((f"blocks.{number}.{layers[0][0]}", layers[0][1]))
    return masked_layers
