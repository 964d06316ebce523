"""Base of strategies that train prompts for a frozen vision transformer.

With `base = task1`, the first half of the first task's steps trains the network as sequential fine-tuning does, and the
second half trains the prompts. The head has all outputs and is trained in both halves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.errors import SpecError
from clbench.models.network import Network, Prefix, TokenNetwork
from clbench.strategy.base import Batch, StreamInfo, Task
from clbench.strategy.common_options import StartOptions
from clbench.strategy.per_task import FrozenBase, check_base

START = 0.01  # upper bound of the uniform initialization, as in google-research/l2p
DEPTH = 12  # transformer blocks of the papers' network


class PromptedStrategy(FrozenBase):
    """A vision transformer that is frozen after its training, the prompts of subclasses, and the model's own head."""

    method: ClassVar[str]
    place: ClassVar[str] = "among the tokens"
    in_attention: ClassVar[bool] = False  # whether the method needs a network whose attention takes prefixes
    loss_is_mean = True
    options: StartOptions
    model: TokenNetwork

    def __init__(self, model: Network, stream_info: StreamInfo, options: StartOptions) -> None:
        """Store the model.

        Raises:
            SpecError: the model has no tokens, or the method needs prefixes and the model does not support them.
        """
        super().__init__(model, stream_info, options)
        self.notes += check_base(self.method, self.options, stream_info, model)
        if not isinstance(model, TokenNetwork):
            raise SpecError(f"{self.method} puts prompts {self.place} of a vision transformer, and this model has "
                            "none; with --model choose vit-tiny, vit-b16 or a plain vision transformer of timm, "
                            "timm:vit_...")
        if self.in_attention and not model.takes_prefixes():
            raise SpecError(f"{self.method} puts prompts {self.place} of a vision transformer, and this one's "
                            "attention has no known place for them; with --model choose vit-tiny, vit-b16 or one of "
                            "timm whose blocks are its Block with its Attention, or take l2p, which needs no place")
        self.prompted = False  # whether prompts are in use; before that, the network predicts without prompts
        self.train(self.training)

    @abstractmethod
    def learning(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the current task trains in addition to the head."""

    @abstractmethod
    def prompted_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch when prompts are in use."""

    def current_head(self) -> nn.Module:
        """Return the head that the current task trains. Default: the model's."""
        return self.model.head

    def grow(self, task: Task) -> None:
        """Add prompts or layers for a task. Default: nothing.

        Afterwards, existing prompts and layers are frozen unless `learning` returns their parameters.
        """

    def before_task(self, task: Task) -> None:
        """Prepare to train the prompts, or the network in the first of two phases."""
        self.grow(task)
        self._learn(base=self.phases(task) == 2)

    def base_learned(self, task: Task) -> None:
        """Freeze the network's blocks and train the prompts."""
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Make either the network's blocks or the prompts trainable, and the head in both cases."""
        self.prompted = not base
        self.requires_grad_(False)
        self.current_head().requires_grad_(True)
        self.model.blocks.requires_grad_(base)
        for parameter in self.learning():
            parameter.requires_grad_(not base)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the blocks if prompts are in use, because the blocks are frozen then."""
        return (self.model.blocks,) if self.prompted else ()

    def query(self, x: Tensor) -> Tensor:
        """Return the frozen network's features [N, D] of inputs x, normalized to length 1."""
        return F.normalize(self.model.features(x), dim=1)

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the query of each sample if prompts are in use."""
        return {"query": self.query(x)} if self.prompted else {}

    def loss(self, batch: Batch) -> Tensor:
        """Return `prompted_loss` if prompts are in use, else the cross-entropy."""
        return self.prompted_loss(batch) if self.prompted else super().loss(batch)

    def parameter(self, *shape: int) -> nn.Parameter:
        """Return a new parameter with the model's device and dtype, drawn uniformly from [0, 0.01)."""
        return nn.Parameter(self.model.head.weight.detach().new_empty(shape).uniform_(0, START))

    def prefixed_features(self, x: Tensor, prefixes: dict[int, Prefix]) -> Tensor:
        """Return the network's features [N, D] of inputs x with prefixes in its attention."""
        return self.model.pooled(self.model.encode(self.model.embed(x), prefixes))

    def block_count(self, option: str, chosen: int | None, in_paper: int) -> int:
        """Return the number of blocks with prompts: `chosen`, else the paper's number.

        In a network with fewer than 12 blocks, the paper's number is reduced in proportion.

        Args:
            option: name of the option, for the note.
            chosen: value of the option; None if the user did not set it.
            in_paper: the number in the paper's network of 12 blocks.
        """
        depth = self.model.depth
        if chosen is not None:
            return chosen
        count = in_paper if depth >= DEPTH else max(1, round(in_paper * depth / DEPTH))
        if count != in_paper:
            self.notes.append(f"{self.method}: {option} = {count} of {depth} blocks, in proportion to the paper's "
                              f"{in_paper} of {DEPTH}")
        return count
