"""OSF: full fine-tuning within the small singular directions of each weight, orthogonal to the large ones.

Before a task, each layer's weight is divided by its singular values, W = U_high S_high V_high + U_low S_low V_low. The
large directions are assumed to be those that earlier tasks need. They are fixed. U_low, S_low and V_low are trained,
and their gradients are made orthogonal to the large directions:

    grad U_low  <-  grad U_low - U_high U_high^T grad U_low
    grad V_low  <-  grad V_low - grad V_low V_high^T V_high

After the task the parts are joined, so that no parameter is added, and the next task divides the new weight.

The method is "Sculpting Subspaces" (Nayak et al. 2025, arXiv 2504.07097). In the paper the share of fixed directions
depends on a layer's importance: the mean cosine similarity of its inputs and outputs. PEFT's OSF (`peft.tuners.osf`)
leaves this out, as here: all layers have one share, by default half. The authors' scripts for T5 (notebooks/
run_finetuning.sh) and PEFT's guide let it rise from task to task, from 0 by 1/T in each of T tasks. That is
`preserved = 0` with `final_preserved` = (T - 1) / T.

Gradients are those of PEFT. As there, only the layers' weights are trained, and not their biases, embeddings or
normalization layers; the authors' scripts train the latter, too. Differences from PEFT:

- PEFT adds the output of U_low S_low V_low minus its initial value to that of W. Here the initial value is subtracted
  from W once, which gives the same output at half of the additional cost.
- PEFT's guide takes the model of the next task from `unload()`. In release 0.21 that discards what was learned. Here it
  is kept, as by PEFT's `merge_and_unload()`.
- A classifier's head is trained from task to task as in `naive`, and nothing protects it. A language model's head stays
  as it is.

Only steps of SGD without momentum or weight decay stay orthogonal. Adam divides each number of a gradient by its own
size, which moves steps a little into the large directions. PEFT's guide and the authors use AdamW all the same.

Beyond the paper and PEFT, which divide Linear layers only: a convolution is divided as the matrix of its kernels
[out, in·height·width]. By default this happens only in networks whose chosen layers are all convolutions. The patch
embedding of a vision transformer then stays as it is, as in PEFT; `convolutions = true` divides it, too.

With `base = task1`, the first half of the first task's steps trains all weights and the head. Weights that are not
divided are not trained after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clbench_lora.selection import choose
from torch import Tensor, nn

from clbench import Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.per_task import FrozenBase, check_base
from clbench_osf import OSFOptions
from clbench_osf.layers import LOW, DividedConv2d, DividedLayer, DividedLinear


class OSF(FrozenBase):
    """A network whose layers are divided while a task is trained; `divided` contains them by name in the model."""

    options: OSFOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: OSFOptions | None = None) -> None:
        """Wrap the layers, which stay whole.

        Raises:
            SpecError: there are none.
        """
        super().__init__(model, stream_info, options if options is not None else OSFOptions())
        self.notes += check_base("osf", self.options, stream_info, model)
        chosen, left_out = choose(model, self.options.layers, "osf")
        if left_out:
            self.notes.append(f"layers = {self.options.layers} leaves out what cannot be divided: {left_out}")
        has_linear = any(isinstance(layer, nn.Linear) for layer in chosen.values())
        convolutions = self.options.convolutions if self.options.convolutions is not None else not has_linear
        if not has_linear and not convolutions:
            raise SpecError(f"osf: convolutions = false, and layers = {self.options.layers} has no Linear layer in it, "
                            f"only {', '.join(chosen)}; leave convolutions out")
        self.divided: dict[str, DividedLayer] = {}
        for name, layer in chosen.items():
            if isinstance(layer, nn.Linear) or convolutions:
                parent, _, attribute = name.rpartition(".")
                self.divided[name] = DividedLinear(layer) if isinstance(layer, nn.Linear) else DividedConv2d(layer)
                setattr(model.get_submodule(parent), attribute, self.divided[name])
        self.base_learns = False
        self.train(self.training)

    def before_task(self, task: Task) -> None:
        """Divide the layers and train their small directions, or all weights if the first task starts with these."""
        self.requires_grad_(False)
        if not self.stream_info.predicts_tokens:
            self.model.head.requires_grad_(True)
        self.base_learns = self.phases(task) == 2
        if self.base_learns:
            self.model.blocks.requires_grad_(True)
            self.train(self.training)
        else:
            self._divide(task)

    def base_learned(self, task: Task) -> None:
        """Freeze all weights, and continue with the small directions."""
        self.base_learns = False
        self.model.blocks.requires_grad_(False)
        self._divide(task)

    def _divide(self, task: Task) -> None:
        """Divide the layers by the share that the task preserves."""
        for layer in self.divided.values():
            layer.divide(self.options.share(task.index, self.stream_info.tasks))
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the blocks, unless all of their weights are trained; small directions in them are always trained."""
        return () if self.base_learns else (self.model.blocks,)

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients without their parts in the large directions."""
        edited = dict(gradients)
        for name, layer in self.divided.items():
            for part in LOW:
                key = f"model.{name}.{part}"
                if key in gradients:
                    edited[key] = layer.orthogonal(part, gradients[key])
        return edited

    def after_task(self, task: Task) -> None:
        """Make the layers whole again, which changes no output."""
        for layer in self.divided.values():
            layer.join()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state as any strategy does. Layers that are whole in the state become whole."""
        for name, layer in self.divided.items():
            if f"model.{name}.{LOW[0]}" not in state_dict:
                layer.discard()
        return super().load_state_dict(state_dict, strict, assign)
