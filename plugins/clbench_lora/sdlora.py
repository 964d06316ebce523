"""SD-LoRA (Wu et al. 2025, arXiv 2501.13198): summed adapters per task, with separate magnitudes and directions.

Task t trains A_t, B_t and the magnitudes a_1, ..., a_t on

    h = W x + sum_{i < t} a_i (B_i A_i / |B_i A_i|) x + a_t B_t A_t x

with Frobenius norms. The directions of earlier tasks no longer change. B_t starts at 0, so it has no direction yet and
is not divided by its norm before the next task begins. All adapters are used together; no task is inferred.

The reference codes are the authors' (WuYichen-97/SD-Lora-CL) and LibContinual's (RL-VIG). If both agree and the paper's
formula differs or does not specify a detail, the defaults here follow the codes:

- They divide by |B_i| |A_i|, which is at least |B_i A_i| (`norm`).
- A task has one magnitude for all layers. At the beginning of each task, all magnitudes are reset to one value, 0.8
  (LibContinual: 1). The network's function therefore jumps: an earlier task's update of any length is rescaled to a
  length of at most 0.8. `magnitudes = layer` is not theirs. It has a magnitude per task and layer and multiplies it by
  the norm when that is divided out, so nothing jumps and earlier magnitudes continue to train.
- The loss is the cross-entropy over the task's own classes (`outputs`), with one head over all classes.

Both codes adapt q and v of all blocks with rank 10. They train with SGD, momentum 0.9 and learning rate 8e-3
(ImageNet-R: 1e-2); here the training configuration determines this. The authors compute a penalty on overlap like
O-LoRA's but do not add it to the loss.

The paper has two variants. SD-LoRA-RR gives later tasks lower ranks (`later_ranks`; in the authors' code rank 8 from
the fifth task on and 6 from the ninth). SD-LoRA-KD drops a direction that is almost a combination of earlier ones. It
is left out, because the tensors after a task would then depend on values. Vectorized seeds and resumed trials need to
know them in advance.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from clbench import Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench_lora import SDLoRAOptions
from clbench_lora.layers import LoRALayer
from clbench_lora.shared_adapters import SummedLoRA


class SDLoRA(SummedLoRA):
    """A frozen backbone W, adapters per task with magnitudes, and the model's head over all classes.

    `magnitudes` has one parameter per task, [1] or [layers]. The buffer `lengths` [T, layers] contains the norms that
    the tasks' adapters are divided by; 1 for the newest.
    """

    method = "sd-lora"
    inputs_only_through_model = True
    roles = (("magnitudes.*", "magnitudes"), ("lengths", "magnitudes"), *SummedLoRA.roles)
    options: SDLoRAOptions
    lengths: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: SDLoRAOptions | None = None) -> None:
        """Install the adapted layers. Raise a SpecError if they do not fit the model."""
        super().__init__(model, stream_info, options if options is not None else SDLoRAOptions())
        absent = [task for task in self.options.later_ranks if int(task) > stream_info.tasks]
        if absent:
            raise SpecError(f"sd-lora: later_ranks has a rank from task {absent[0]} on, and there are "
                            f"{stream_info.tasks} tasks; leave it out")
        self.magnitudes = nn.ParameterList()
        self.register_buffer("lengths", model.head.weight.new_ones(stream_info.tasks, len(self.adapted)))

    def before_task(self, task: Task) -> None:
        """Divide the newest adapters by their lengths, set magnitudes, and add adapters of the task's rank."""
        shared = self.options.magnitudes == "shared"
        with torch.no_grad():
            if task.index:
                lengths = torch.stack([self.length(layer) for layer in self.adapted.values()])
                self.lengths[task.index - 1] = lengths
                if not shared:
                    self.magnitudes[-1].mul_(lengths)
            self.magnitudes.append(nn.Parameter(self.lengths.new_ones(1 if shared else len(self.adapted))))
            for magnitude in self.magnitudes if shared else self.magnitudes[-1:]:
                magnitude.fill_(self.options.magnitude)
        for layer in self.adapted.values():
            lower = [rank for number, rank in self.options.later_ranks.items() if int(number) - 1 <= task.index]
            layer.rank = min([layer.rank, *lower])
        super().before_task(task)

    def begin(self, task: Task) -> None:
        """Train the newest adapters and all magnitudes from now on."""
        super().begin(task)
        self.magnitudes.requires_grad_(True)

    def length(self, layer: LoRALayer) -> Tensor:
        """Return the norm that a layer's newest adapter is divided by, a scalar.

        It is 1 if the adapter is zero, because it then has no direction. The adapter's scale is part of its magnitude
        and is divided out as well.
        """
        a, b = (part.flatten(1) for part in layer.parameters_of(-1).values())
        norm = layer.scaling * ((b @ a).norm() if self.options.norm == "product" else a.norm() * b.norm())
        return torch.where(norm > 0, norm, torch.ones_like(norm))

    def weights(self) -> dict[str, Tensor]:
        """Return each B_i times its magnitude, divided by its length, by name in the model."""
        if self.base_learns:
            return {}
        scaled_weights = {}
        for number, (name, layer) in enumerate(self.adapted.items()):
            for i, (magnitude, b) in enumerate(zip(self.magnitudes, layer.lora_B, strict=True)):
                factor = magnitude[number % len(magnitude)] / self.lengths[i, number]
                scaled_weights[f"{name}.lora_B.{i}.weight"] = factor * cast(Tensor, b.weight)
        return scaled_weights

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] of W with all adapters, each with its magnitude."""
        return self.model.from_features(self.model.features(x, self.weights()))
