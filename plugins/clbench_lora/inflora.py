"""InfLoRA (Liang & Li 2024, arXiv 2404.00228): adapters per task, summed, each zero on the inputs of earlier tasks.

Task t gets its own adapters. Their A_t is not trained. It is computed from the task's inputs X to the layer, without
the part in the subspace stored for earlier tasks: its rows are the strongest directions of X - PX. A_t x is thus 0 for
all x in that subspace, and training B_t changes nothing there. After the task, the subspace is extended until it holds
a share of the energy of the task's inputs. The option `criterion` defines energy. In the reference code
(liangyanshuo/InfLoRA, methods/inflora.py), it is the squared singular values of the second moment X X^T. In the paper,
it is those of X, the criterion of GPM. (The paper swaps the letters: its A_t is B here, and its B_t, the dimensionality
reduction matrix, is A.) A task trains B_t and a head for its new classes, by default on the cross-entropy over the
task's own classes (`outputs`). The logits of all heads predict together; no task is inferred.

The code's energies are fourth powers of the singular values of X, and the paper's are squares. At the same threshold,
the code thus stores far fewer of the 784 directions of split-mnist-5k: 1 after the first task and 10 after the fifth.
The paper's criterion stores 50 and 269. After the first task, the code also stops one direction earlier, but stores at
least one. `criterion = moment`, the default, does both.

Other differences between the code and the paper:

- The code takes the singular vectors of C - PC for the second moment C (`design = moment`). The paper takes those of
  X - PX, which are the eigenvectors of (1 - P) C (1 - P) (`design = inputs`, the default). Both span the same space if
  it has at most `rank` dimensions.
- The rows of the code's A_t have length 1/sqrt(3), and here 1. By default alpha = rank / sqrt(3), which multiplies the
  adapter's output by 1/sqrt(3). Adam then takes the same steps of B_t as in the code.

The paper and the code adapt k and v of all attention layers (`targets = k+v`). These have the same inputs, and one
subspace is stored for both; here each layer has its own. The code works with projectors [d, d] and stores bases. Here,
only half of the symmetric projector is stored (`clbench.strategy.subspace`), which is DualGPM's upper bound. The inputs
are those of the training samples without augmentation. The rank is 10, as in the code. The code's learning rate falls
along a quarter of a cosine within each task, as with `recipe=published`; otherwise the training configuration applies.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench import Network, Samples, StreamInfo, Task
from clbench.strategy.common_options import Criterion
from clbench.strategy.regularization import slot
from clbench.strategy.subspace import grown, packed, spectrum_outside, unpacked
from clbench_lora import InfLoRAOptions
from clbench_lora.joined_heads import JoinedHeadsLoRA
from clbench_lora.layers import LoRALayer
from clbench_lora.shared_adapters import adapter_moments


class InfLoRA(JoinedHeadsLoRA):
    """A frozen backbone W, adapters per task with a computed, frozen A, and a head for each task's new classes.

    The buffers `subspace__*` are the projectors onto the stored subspace of each adapted layer's inputs (`packed`).
    """

    method = "inflora"
    roles = (("subspace__*", "subspaces"), *JoinedHeadsLoRA.roles)
    options: InfLoRAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: InfLoRAOptions | None = None) -> None:
        """Install the adapted layers, with empty subspaces. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options if options is not None else InfLoRAOptions())
        for name, layer in self.adapted.items():
            like = layer.base_layer.weight
            size = like[0].numel()
            self.register_buffer(f"subspace__{slot(name)}", packed(like.new_zeros(size, size)))

    def learning(self, layer: LoRALayer) -> Iterable[nn.Parameter]:
        """Return B_t."""
        return (layer.parameters_of(-1)["lora_B.weight"],)

    @torch.no_grad()
    def begin(self, task: Task) -> None:
        """Compute A_t and train B_t from now on."""
        super().begin(task)  # B_t is 0, so the network's outputs do not change
        for name, moment in self.moments(task.train).items():
            a = self.adapted[name].lora_A[-1].get_parameter("weight")
            a.copy_(design(moment, self.stored_projector(name), len(a), self.options.design).view_as(a))

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Extend the stored subspaces by directions of the task's inputs, and realign the heads if `align` is set."""
        super().after_task(task)
        start, end = self.options.threshold, self.options.final_threshold
        threshold = start + (end - start) * task.index / self.stream_info.tasks
        for name, moment in self.moments(task.train).items():
            projector = grown(moment, self.stored_projector(name), threshold, self.options.criterion)
            self.get_buffer(f"subspace__{slot(name)}").copy_(packed(projector))

    def stored_projector(self, name: str) -> Tensor:
        """Return the projector [d, d] onto the subspace of a layer's inputs stored for the tasks so far."""
        size = self.adapted[name].base_layer.weight[0].numel()
        return unpacked(self.get_buffer(f"subspace__{slot(name)}"), size)

    def moments(self, samples: Samples) -> dict[str, Tensor]:
        """Return the uncentered second moment [d, d] of each adapted layer's inputs over raw samples, by layer."""
        return adapter_moments(self, samples, self.model.features)


def design(moment: Tensor, projector: Tensor, rank: int, of: Criterion = "inputs") -> Tensor:
    """Return the A [rank, d] of a new task: the strongest directions of its inputs outside the stored subspace.

    With the inputs X [d, N] and C = X X^T these are the left singular vectors of X - PX, or of C - PC.

    The rows are orthonormal. If fewer than `rank` directions are left, the remaining rows are 0, because nothing more
    can be learned without interference.

    Args:
        moment: second moment C of the new task's inputs [d, d].
        projector: P of the stored subspace [d, d].
        rank: at most d.
        of: take the directions of the inputs X (`inputs`) or of their second moment C (`moment`).
    """
    _, floor, values, vectors = spectrum_outside(moment, projector, of)
    return (vectors * (values > floor))[:, :rank].T.to(moment.dtype)
