"""Outputs of frozen first blocks for the test samples, kept from one row of R to the next.

What `clbench.training.precompute` does for training: closed forms (`ncm`, `slda`, `ranpac`, ...) and others on a frozen
base would run it on all test samples in every row. No strategy knows of it. In every evaluation the blocks must have
the same bytes (by a hash) as when their outputs were kept, and a few samples must have the same answers, bit for bit,
from the outputs as from the inputs: a strategy that does something else with its inputs is left alone.
`CLBENCH_CACHE_FROZEN=0` turns it off.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clbench.strategy.base import Prediction, Strategy
from clbench.training.hashes import hashed
from clbench.training.lookup import enabled
from clbench.training.precompute import frozen_blocks, starting_at

BYTES = 2**28  # of outputs of one trial


@dataclass
class KeptBlocks:
    """Outputs of a trial's frozen first blocks on the batches of its test samples, by the task that is given."""

    count: int = 0  # of the blocks
    hashes: dict[str, bytes] = field(default_factory=dict)  # of what they hold
    outputs: dict[int | None, list[Tensor]] = field(default_factory=dict)
    useless: bool = False  # answers were other ones: not tried again

    def begin(self, strategy: Strategy) -> None:
        """Begin an evaluation: forget outputs of blocks that have changed. The strategy is in eval mode."""
        count = 0 if self.useless or not enabled() else frozen_blocks(strategy)
        blocks = list(strategy.model.blocks)[:count] if count else []
        held = {f"{number}.{name}": tensor for number, block in enumerate(blocks)
                for name, tensor in (*block.named_parameters(), *block.named_buffers())}
        found = count if held else 0, hashed(held)
        if found != (self.count, self.hashes):
            (self.count, self.hashes), self.outputs = found, {}

    def serve(self, strategy: Strategy, few: Tensor, samples: int, given: int | None) -> bool:
        """Return whether `predict` may be used for so many samples of a task (of all: None) in this evaluation.

        `few` are some of them, whose answers are compared.
        """
        if not self.count:
            return False
        direct = strategy.predict(few, given)
        try:
            kept = strategy.model.run(few, 0, self.count)
            alike = same(direct, self._from(strategy, kept, given))
        except (RuntimeError, ValueError, IndexError, TypeError):
            alike = False  # it does something else with its inputs than to run the model on them
        if not alike:
            self.useless, self.count, self.outputs = True, 0, {}
            return False
        known = sum(part.nbytes for parts in self.outputs.values() for part in parts)
        return given in self.outputs or known + kept.nbytes // len(few) * samples <= BYTES

    def predict(self, strategy: Strategy, x: Tensor, given: int | None, number: int) -> Prediction:
        """Return the prediction for batch `number` of the samples of a task, inputs x [n, *input_shape]."""
        outputs = self.outputs.setdefault(given, [])
        if number == len(outputs):
            outputs.append(strategy.model.run(x, 0, self.count))
        return self._from(strategy, outputs[number], given)

    def _from(self, strategy: Strategy, outputs: Tensor, given: int | None) -> Prediction:
        with starting_at([strategy], self.count):
            return strategy.predict(outputs, given)


def same(one: Prediction, other: Prediction) -> bool:
    """Return whether two predictions are equal bit for bit."""
    return all(a is b or (a is not None and b is not None and torch.equal(a, b))
               for a, b in zip(one, other, strict=True))
