"""Progressive neural networks (Rusu et al. 2016, arXiv 1606.04671), on any model whose blocks are of known kinds.

Known kinds are dense and convolution layers, residual units and transformer blocks.

From the second block through the head, column k computes
h_i^(k) = act_i(body_i(h_{i-1}^(k)) + U relu(V [a_j h_{i-1}^(j)]_{j<k})), with one scalar a_j per earlier column.

Avalanche's `PNN` differs:

- It supports multilayer perceptrons only.
- Its first layer has a lateral too, which reads the raw input once for each earlier column. Its classifier has none,
  while the paper's output layer has one.
- V reduces to the layer's own width n_i (the paper's V: n_{i-1}), and U has a bias.
- The scalars are drawn from N(0, 1) (the paper: small random values).
- torch's initializer sets the weights of all columns. Here, the first column starts from the weights that all methods
  start from, including pretrained ones.

In the paper, earlier tasks are the only pretraining, and a new column is randomly initialized. On a pretrained network,
later columns would thus lack the pretrained weights that all other methods start from. With `start = base`, they start
from the initial weights of the first column, a copy of which is stored. Laterals are initialized as usual.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.strategy.per_task import PerTaskStrategy
from clbench_pnn import PNNOptions
from clbench_pnn.lateral import Join, Lateral, joins


class Column(nn.Module):
    """A later column: blocks of its own, and a lateral for each block from the second on and for the head (the last).

    Args:
        blocks: the blocks to copy.
        reinitialize: whether to draw the weights of the copies again.
        places: where laterals join.
        classes: the number of outputs of the task's head.
        earlier: the number of earlier columns.
        reduction: see `Lateral`.
    """

    def __init__(self, blocks: nn.ModuleList, reinitialize: bool, places: list[Join], classes: int, earlier: int,
                 reduction: int) -> None:
        """Copy the blocks, draw the laterals, and draw the weights of the blocks again if `reinitialize` is set."""
        super().__init__()
        self.blocks = copy.deepcopy(blocks).requires_grad_(True)
        for module in self.blocks.modules() if reinitialize else ():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        outs = [join.outputs for join in places[:-1]] + [classes]
        like = next(blocks.parameters())
        self.laterals = nn.ModuleList(Lateral(join, out, earlier, reduction, like)
                                      for join, out in zip(places, outs, strict=True))


class PNN(PerTaskStrategy):
    """The model's own blocks are column 0; `columns` holds the later ones, `heads` the head of each column.

    With `start = base`, `start` is a copy of the blocks that column 0 started from and every later column starts from.
    """

    roles = (("model.blocks.*", "columns"), ("columns.*", "columns"), ("start.*", "base"), *PerTaskStrategy.roles)
    loss_is_mean = True
    options: PNNOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: PNNOptions | None = None) -> None:
        """Check where laterals join. Raise a SpecError if the model has no such place."""
        super().__init__(model, stream_info, options if options is not None else PNNOptions())
        joins(model)
        self.start = copy.deepcopy(model.blocks) if self.options.start == "base" else None
        if self.start is None:
            self._require_resets()
            if stream_info.pretrained:
                self.notes += ["pnn: later columns start from random weights, as the paper's do; with start = base "
                               "they start from the pretrained ones"]
        self.columns = nn.ModuleList()

    def _require_resets(self) -> None:
        """Raise a SpecError if a layer cannot be initialized again."""
        for name, module in self.model.blocks.named_modules():
            if list(module.parameters(recurse=False)) and not hasattr(module, "reset_parameters"):
                raise SpecError(f"pnn: blocks.{name} ({type(module).__name__}) has no reset_parameters to initialize a "
                                "new column with; choose start = base or another model")

    def before_task(self, task: Task) -> None:
        """Freeze the earlier columns and add the task's; the first is the model itself."""
        super().before_task(task)
        if task.index == 0:
            self.model.blocks.requires_grad_(True)
        else:
            reinitialize = self.start is None
            self.columns.append(Column(self.model.blocks if self.start is None else self.start, reinitialize,
                                       joins(self.model), len(task.classes), task.index, self.options.reduction))
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the columns before the newest, and the blocks that columns start from."""
        modules = [] if self.start is None else [self.start]
        return modules + [self.model.blocks, *self.columns][:max(len(self.heads) - 1, 0)]

    @property
    def parts_final(self) -> bool:  # type: ignore[override]
        """Return whether the task is given; if it is not, the newest column computes all earlier ones anyway."""
        return self.stream_info.task_given

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the outputs of all blocks in the columns before the newest."""
        outputs_by_name = {}
        for block, outputs in enumerate(self._blocks(x, len(self.heads) - 1)):
            for column, out in enumerate(outputs):
                outputs_by_name[output_name(block, column)] = out
        return outputs_by_name

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the newest column."""
        features = self._features(batch.x, batch.task + 1, self.frozen_outputs_of(batch))
        return self.cross_entropy(self._answer(features, batch.task), batch)

    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the task's column, which reads all earlier ones."""
        return self._answer(self._features(x, task + 1), task)

    def learned_logits(self, x: Tensor) -> Tensor:
        """Return the logits [learned tasks, N, C] of all columns, each computed once."""
        features = self._features(x, self.learned)
        return torch.stack([self._answer(features, task) for task in range(self.learned)])

    def shared_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] of the first column."""
        return self.model.features(x)

    def _features(self, x: Tensor, count: int, known: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Return the outputs of the last block in the first `count` columns; see `_blocks`."""
        return self._blocks(x, count, known)[-1]

    def _blocks(self, x: Tensor, count: int, known: Mapping[str, Tensor] | None = None) -> list[list[Tensor]]:
        """Return the outputs of each block in the first `count` columns.

        `known` are outputs of earlier columns that are already computed, by `output_name`.
        """
        columns = [self.model.blocks, *(column.get_submodule("blocks") for column in self.columns[:count - 1])][:count]
        outputs: list[list[Tensor]] = []
        for number in range(len(self.model.blocks)):
            inputs = outputs[-1] if outputs else [x] * count
            outputs.append([])
            for column, blocks in enumerate(columns):
                if known is not None and output_name(number, column) in known:
                    outputs[-1].append(known[output_name(number, column)])
                    continue
                block: Any = blocks.get_submodule(str(number))
                out = block.body(inputs[column])
                if number > 0 and column > 0:
                    out = out + self._lateral(column, number - 1, inputs)
                outputs[-1].append(block.activation(out))
        return outputs

    def _answer(self, features: list[Tensor], task: int) -> Tensor:
        """Return the logits [N, C] of a task's head on the features of the columns up to the task's own."""
        lateral = self._lateral(task, -1, features) if task > 0 else None
        logits: Tensor = self.heads[task](features[task], lateral)
        return logits

    def _lateral(self, column: int, place: int, hidden: list[Tensor]) -> Tensor:
        """Return the term that earlier columns add to `column` at a place, given the outputs before that place."""
        laterals = self.columns[column - 1].get_submodule("laterals")
        assert isinstance(laterals, nn.ModuleList)
        added: Tensor = laterals[place](hidden[:column])
        return added


def output_name(block: int, column: int) -> str:
    """Return the name of a block's output in a column, in `PNN.frozen_outputs`."""
    return f"block {block}, column {column}"
