"""GPM: keep steps orthogonal to each layer's inputs in earlier tasks, so that its outputs for them do not change.

For a layer's weight W, whose inputs x (of a convolution: patches) in earlier tasks lie in a subspace with projector P,

    grad W  <-  grad W - (grad W) P          (equations 6 and 7)

so that W x stays the same for all x with P x = x. After a task, P is extended by as few directions as possible so that
it holds the share `threshold` of the energy of the task's inputs (equations 5, 8 and 9;
`clbench.strategy.subspace.grown`). The inputs are those of `samples` random training samples, without augmentation.
Half of the symmetric P is stored.

GPM needs SGD, which the authors use (no momentum; the learning rate of 0.01 falls to 1e-5 when held-out data stop
improving). Momentum is a sum of projected gradients; it is harmless if it is reset after each task
(`optimizer_state = reset`). Adam divides each number of the gradient by its own size, which moves the step out of the
orthogonal complement. Weight decay shrinks W in all directions. With either, old outputs change. Therefore run
`--optimizer sgd`, without weight decay.

As in the authors' code (sahagobinda/GPM), all other parameters are trained in the first task only. These are the
parameters and statistics of normalization layers, and the biases of layers: a bias is a weight whose input is always 1,
and the authors' networks have none. Layers of other kinds (grouped convolutions, position embeddings of a vision
transformer) are also trained in the first task only.

The head: if the task is known, every class has a row that only its own task trains, as in the authors' networks with a
head per task. The head is then not projected. If the task is not known, all rows compete, and the head is projected
like any other layer, as in their permuted MNIST. The paper does not cover scenario `class`. By default, new samples
compete among their task's classes there (`outputs`), as in the paper, so that old rows do not change. Rows of different
tasks are then never compared during training.

A language model's head is trained in the first task only, like its embedding, with which it may share its weights.

Differences: in the authors' code, the first task's subspace has one direction fewer than equation 5 requires; here it
follows the paper. For networks with batch normalization, the authors use statistics of the batch also at test time.
They store a basis.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clbench import Network, Strategy, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.core.torch_private import NormWithStatistics
from clbench.strategy.regularization import slot
from clbench.strategy.subspace import grown, input_moments, packed, unpacked
from clbench_gpm import GPMOptions


class GPM(Strategy):
    """Fine-tuning with projected gradients; `subspace__*` are projectors (`packed`), `projector__*` the same unpacked.

    The unpacked ones exist only while a task is trained, from the second task on.
    """

    roles = (("subspace__*", "subspaces"),)
    options: GPMOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: GPMOptions | None = None) -> None:
        """Start with empty subspaces.

        Raises:
            SpecError: a language model has no layer whose gradients can be projected.
        """
        super().__init__(model, stream_info, options if options is not None else GPMOptions())
        self.tasks = 0  # number of tasks that have begun
        layers = self.projected()
        if not layers and stream_info.predicts_tokens:  # other models still learn their head
            raise SpecError("gpm projects gradients of linear and convolutional layers, and this model has none "
                            "(GPT-2's are Conv1D); choose another model")
        for name, layer in layers.items():
            size = layer.weight[0].numel()
            self.register_buffer(f"subspace__{slot(name)}", packed(layer.weight.detach().new_zeros(size, size)))
            self.register_buffer(f"projector__{slot(name)}", None, persistent=False)

    def projected(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """Return the layers whose gradients are projected, by name in the model."""
        attention_ids: set[int] = set()  # ids of modules inside attention, whose layers are never called
        for module in self.model.modules():
            if isinstance(module, nn.MultiheadAttention):
                attention_ids.update(map(id, module.modules()))
        layers = {name: layer for name, layer in self.model.named_modules()
                  if isinstance(layer, nn.Linear | nn.Conv2d) and id(layer) not in attention_ids
                  and getattr(layer, "groups", 1) == 1}
        if self.stream_info.task_given or self.stream_info.predicts_tokens:
            del layers["head"]
        return layers

    def before_task(self, task: Task) -> None:
        """From the second task on, freeze all but the projected layers and a per-task head; unpack the projectors."""
        self.tasks = task.index + 1
        if not task.index:
            return
        self.requires_grad_(False)
        if self.stream_info.task_given and not self.stream_info.predicts_tokens:
            self.model.head.requires_grad_(True)
        for name, layer in self.projected().items():
            layer.weight.requires_grad_(True)
            setattr(self, f"projector__{slot(name)}", self.stored_projector(name))
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the layers with running statistics, from the second task on."""
        return [m for m in self.model.modules() if isinstance(m, NormWithStatistics)] if self.tasks > 1 else ()

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients without the part in the subspaces of earlier inputs."""
        if self.tasks < 2:
            return gradients
        edited = dict(gradients)
        for layer in self.projected():
            name = f"model.{layer}.weight"
            if name in gradients:
                flat = gradients[name].flatten(1)
                edited[name] = (flat - flat @ self.get_buffer(f"projector__{slot(layer)}")).view_as(gradients[name])
        return edited

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Extend the subspaces by the directions that the task's inputs need."""
        threshold = min(1.0, self.options.threshold + self.options.increase * task.index)
        samples = task.train.materialized().subset(self.options.samples, self.stream_info.generator)
        try:
            moments = input_moments(self, self.model, self.projected(), samples)
        except SpecError as error:
            raise SpecError(f"gpm: {error}; choose another model") from None
        for name, moment in moments.items():
            projector = grown(moment, self.stored_projector(name), threshold)
            self.get_buffer(f"subspace__{slot(name)}").copy_(packed(projector))
            setattr(self, f"projector__{slot(name)}", None)

    def stored_projector(self, name: str) -> Tensor:
        """Return the projector [d, d] onto the stored subspace of a layer's inputs."""
        size = self.projected()[name].weight[0].numel()
        return unpacked(self.get_buffer(f"subspace__{slot(name)}"), size)
