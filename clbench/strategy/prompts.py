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

START = 0.01  # what is drawn uniformly lies below, as in google-research/l2p
DEPTH = 12  # transformer blocks of the papers' network


class PromptedStrategy(FrozenBase):
    """A transformer that is frozen once it is trained, what subclasses add to it, and the network's own head."""

    method: ClassVar[str]
    place: ClassVar[str] = "among the tokens"
    in_attention: ClassVar[bool] = False  # whether `encode` is given prefixes
    loss_is_mean = True
    options: StartOptions
    model: TokenNetwork

    def __init__(self, model: Network, stream_info: StreamInfo, options: StartOptions) -> None:
        """Keep the model; SpecError where it has no tokens, or no place for prefixes that are needed."""
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
        self.prompted = False  # whether prompts are in use; the plain network answers before
        self.train(self.training)

    @abstractmethod
    def learning(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the current task trains in addition to the head."""

    @abstractmethod
    def prompted_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch once prompts are in use."""

    def current_head(self) -> nn.Module:
        """Return the head that the current task trains. Default: the model's."""
        return self.model.head

    def grow(self, task: Task) -> None:
        """Add what a task needs; everything older is frozen afterwards unless it is `learning`. Default: nothing."""

    def before_task(self, task: Task) -> None:
        """Train prompts, or the network where the first task is to make it."""
        self.grow(task)
        self._learn(base=self.phases(task) == 2)

    def base_learned(self, task: Task) -> None:
        """Freeze the network."""
        self._learn(base=False)

    def _learn(self, base: bool) -> None:
        """Train either the network's blocks or prompts; the head is trained with both."""
        self.prompted = not base
        self.requires_grad_(False)
        self.current_head().requires_grad_(True)
        self.model.blocks.requires_grad_(base)
        for parameter in self.learning():
            parameter.requires_grad_(not base)
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the blocks once they are frozen."""
        return (self.model.blocks,) if self.prompted else ()

    def query(self, x: Tensor) -> Tensor:
        """Return the frozen network's features [N, D] of inputs x, of length 1."""
        return F.normalize(self.model.features(x), dim=1)

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the query of each sample once prompts are in use."""
        return {"query": self.query(x)} if self.prompted else {}

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss with prompts once they are in use, before that plain cross-entropy."""
        return self.prompted_loss(batch) if self.prompted else super().loss(batch)

    def parameter(self, *shape: int) -> nn.Parameter:
        """Return a new parameter that is not part of the model, uniform in [0, 0.01)."""
        return nn.Parameter(self.model.head.weight.detach().new_empty(shape).uniform_(0, START))

    def prefixed_features(self, x: Tensor, prefixes: dict[int, Prefix]) -> Tensor:
        """Return the network's features [N, D] of inputs x with prefixes in its attention."""
        return self.model.pooled(self.model.encode(self.model.embed(x), prefixes))

    def share(self, option: str, chosen: int | None, papers: int) -> int:
        """Return how many blocks have prompts: as chosen, else the paper's number, in proportion in fewer than 12.

        Args:
            option: its name.
            chosen: its value.
            papers: the number in the paper's network of 12 blocks.
        """
        depth = self.model.depth
        if chosen is not None:
            return chosen
        count = papers if depth >= DEPTH else max(1, round(papers * depth / DEPTH))
        if count != papers:
            self.notes.append(f"{self.method}: {option} = {count} of {depth} blocks, in proportion to the paper's "
                              f"{papers} of {DEPTH}")
        return count
