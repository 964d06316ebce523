"""InfLoRA (Liang & Li 2024, arXiv 2404.00228): adapters per task, summed, each blind to the inputs of earlier tasks.

Task t gets its own adapters. Their A_t is not trained but computed from the task's inputs X to the layer, without the
part in the subspace stored for earlier tasks: its rows are the strongest directions of X - PX. So A_t x is 0 for all x
in that subspace, and training B_t changes nothing there. After the task the subspace is extended until it holds a share
of the energy of the task's inputs. What counts as energy is the option `criterion`: as in the reference code
(liangyanshuo/InfLoRA, methods/inflora.py) the squared singular values of the second moment X X^T, or as in the paper
those of X, the criterion of GPM. (The paper swaps the letters: its A_t is B here, and its B_t, the dimensionality
reduction matrix, is A.) Trained are B_t and a head for the task's new classes, by default on the cross-entropy over the
task's own classes (`outputs`). At the test all heads answer together; no task is inferred.

The code's energies are fourth powers of the singular values of X, where the paper's are squares, so that at the same
threshold it stores far fewer directions: of the 784 of split-mnist-5k 1 after the first task and 10 after the fifth,
where the paper's criterion stores 50 and 269. After the first task it also stops one direction earlier, but stores at
least one. `criterion = moment`, the default, does both.

Where the code differs from the paper otherwise, this follows the paper:

- The code takes the singular vectors of C - PC for the second moment C, the paper those of X - PX, which are the
  eigenvectors of (1 - P) C (1 - P).
- The rows of the code's A_t have length 1/sqrt(3), here 1 (alpha = rank / sqrt(3) gives theirs).

Both adapt k and v of all attention layers (`targets = k+v`), which have the same inputs, and store one
subspace for both; here each layer has its own. The code works with projectors [d, d] and stores bases; here only half
of the symmetric projector is stored (`subspace`), which is DualGPM's upper bound. The inputs are those of the training
samples without augmentation. The code's rank is 10, here 4, and its learning rate falls along a cosine within each
task, here as the recipe says.

If no class of a task is new (scenario `domain`, or classes that return) no head is added; the heads of the task's
classes are trained further, which changes their answers for earlier tasks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench import Network, Samples, Task, World
from clbench.strategy.alignment import Aligned
from clbench.strategy.per_task import TaskHead
from clbench.strategy.subspace import grown, packed, unpacked
from clbench_lora import InfLoRAOptions
from clbench_lora.layers import LoRALayer
from clbench_lora.shared_adapters import SummedLoRA, adapter_moments
from clbench_lora.subspace import design


class InfLoRA(Aligned, SummedLoRA):
    """A frozen base W, adapters per task with a computed, frozen A, and a head for each task's new classes.

    The buffers `subspace__*` are the projectors onto the stored subspace of each adapted layer's inputs (`packed`).
    """

    method = "inflora"
    roles = (("heads.*", "heads"), ("subspace__*", "subspaces"), *Aligned.roles, *SummedLoRA.roles)
    options: InfLoRAOptions

    def __init__(self, model: Network, world: World, options: InfLoRAOptions | None = None) -> None:
        """Install the adapted layers, with empty subspaces; SpecError if they do not fit the model."""
        super().__init__(model, world, options if options is not None else InfLoRAOptions())
        self.heads = nn.ModuleList()
        self.classes: list[tuple[int, ...]] = []  # of each head
        self.current: list[int] = []  # the heads of the current task
        for name, layer in self.adapted.items():
            like = layer.base_layer.weight
            size = like[0].numel()
            self.register_buffer(f"subspace__{_slot(name)}", packed(like.new_zeros(size, size)))

    def before_task(self, task: Task) -> None:
        """Add a head for new classes, then adapters; the head comes first, so that all methods get the same head."""
        known = {c for classes in self.classes for c in classes}
        if new := tuple(c for c in task.classes if c not in known):
            head = self.model.head
            self.heads.append(TaskHead(head.in_features, new, self.world.classes, head.weight))
            self.classes.append(new)
        self.current = [i for i, classes in enumerate(self.classes) if set(classes) & set(task.classes)]
        super().before_task(task)

    def heads_for(self, task: Task) -> Iterable[nn.Module]:
        """Return the heads of the task's classes."""
        return [self.heads[i] for i in self.current]

    def learning(self, layer: LoRALayer) -> Iterable[nn.Parameter]:
        """Return B_t."""
        return (layer.parameters_of(-1)["lora_B.weight"],)

    def head_of(self, output: int) -> tuple[nn.Linear, int]:
        """Return the head of the task that brought a class first, and its unit there."""
        head, classes = next((head, own) for head, own in zip(self.heads, self.classes, strict=True) if output in own)
        assert isinstance(head, TaskHead)
        return head, classes.index(output)

    @torch.no_grad()
    def begin(self, task: Task) -> None:
        """Compute A_t and train B_t from now on."""
        super().begin(task)  # B_t is 0: the network answers as before
        for name, moment in self.moments(task.train).items():
            a = self.adapted[name].lora_A[-1].get_parameter("weight")
            a.copy_(design(moment, self.kept(name), len(a)).view_as(a))

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Extend the stored subspaces by the directions that the task needs; realign the heads where that is chosen."""
        super().after_task(task)
        start, end = self.options.threshold, self.options.final_threshold
        threshold = start + (end - start) * task.index / self.world.tasks
        for name, moment in self.moments(task.train).items():
            wider = grown(moment, self.kept(name), threshold, self.options.criterion)
            self.get_buffer(f"subspace__{_slot(name)}").copy_(packed(wider))

    def kept(self, name: str) -> Tensor:
        """Return the projector [d, d] onto the subspace of a layer's inputs stored for the tasks so far."""
        size = self.adapted[name].base_layer.weight[0].numel()
        return unpacked(self.get_buffer(f"subspace__{_slot(name)}"), size)

    def moments(self, samples: Samples) -> dict[str, Tensor]:
        """Return the uncentred second moment [d, d] of each adapted layer's inputs over raw samples, by layer."""
        return adapter_moments(self, samples, self.model.features)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the logits [N, C] of all heads; for classes without a head those of the original head."""
        features = self.model.features(x)
        logits: Tensor = self.model.head(features)
        for head in self.heads:
            own = head(features)
            logits = torch.where(own.isneginf(), logits, own)
        return logits


def _slot(name: str) -> str:
    """Return a layer's name without dots, which are not allowed in a buffer's name."""
    return name.replace(".", "__")
