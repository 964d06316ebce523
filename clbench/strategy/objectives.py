"""What an objective does with a strategy's outputs: batches, loss and scores of items.

`classification` and `regression` take outputs [N, C]. `causal-lm` takes hidden states [N, L, D] and applies the
model's head to the scored positions only, because the logits of all positions would take most of the memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core import tokens
from clbench.core.objective import CAUSAL_LM, CLASSIFICATION, R2, REGRESSION, RMSE, ObjectiveInfo
from clbench.data.samples import Samples
from clbench.models.scoring import IGNORED, MULTIPLE, needed_tokens, rounded, token_scores
from clbench.strategy.granted import Batch, StreamInfo

NO_VARIANCE = 1e-12  # of standardized targets: below it they are equal but for rounding


class Trained(Protocol):
    """What an objective needs of a strategy (`clbench.strategy.base.Strategy`)."""

    stream_info: StreamInfo

    def mask(self, logits: Tensor, tasks: Tensor, replayed: int = 0) -> Tensor:
        """Return logits [N, C] without the outputs that take no part."""

    def head_of_task(self, task: int | None) -> nn.Module:
        """Return the head of a language model."""


class Objective(ABC):
    """What a model is trained for."""

    info: ClassVar[ObjectiveInfo]

    @abstractmethod
    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches of a stack of trials, whose inputs are prepared, as `Strategy.loss` takes them."""

    def cut(self, samples: Samples) -> Samples:
        """Return raw samples without tokens that no batch of them needs. Default: unchanged."""
        return samples

    @abstractmethod
    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of what `Strategy.forward` returned for a batch, a scalar."""

    @abstractmethod
    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return values [N] for the outputs of N items, by name, from whose means over items the metrics follow.

        Args:
            strategy: whose outputs they are.
            out: what `Strategy.predict` returned; logits are -inf where an output takes no part.
            y: labels as the stream stores them.
            task: what `Strategy.predict` was given.
        """

    def metrics(self, strategy: Trained, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each task's metrics [T] from the means [T] of its items' `scores`. Default: the means."""
        return dict(means)

    def contributions(self, strategy: Trained, scores: Mapping[str, Tensor], means: Mapping[str, Tensor]
                      ) -> dict[str, Tensor]:
        """Return values [N] of items by metric, whose mean over a task's items is the metric. Default: the scores.

        Args:
            strategy: whose scores they are.
            scores: of N items.
            means: the means [N] of the scores over the task of each item.
        """
        return dict(scores)


class Classification(Objective):
    """Find the class of an input: cross-entropy, accuracy."""

    info = CLASSIFICATION

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches of text, all cut off behind the longest sample of any."""
        return [_cut(batch, x) for batch, x in zip(batches, tokens.shortened([b.x for b in batches]), strict=True)]

    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits [N, C] over each sample's active outputs."""
        return F.cross_entropy(strategy.mask(out, batch.tasks, batch.replayed), batch.y)

    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return whether each sample's highest logit is that of its label."""
        return {"accuracy": (out.argmax(1) == y).float()}


class CausalLM(Objective):
    """Predict the next token: cross-entropy over the scored tokens; `nll` and `exact` of each item.

    The training loss is the mean over the scored tokens of the batch, as in transformers. An item's `nll` is the mean
    over its own, so that long responses do not count more than short ones.
    """

    info = CAUSAL_LM

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches cut off behind the last target of any, with targets and their positions.

        The numbers of tokens L and of targets K are rounded up to multiples of 16.
        """
        length = max(needed_tokens(batch.y) for batch in batches)
        scored = [b.y[:, 1:length] != IGNORED for b in batches]
        count = min(length - 1, rounded(max(int(s.sum(1).max()) for s in scored), MULTIPLE))
        made = []
        for batch, there in zip(batches, scored, strict=True):
            at = torch.argsort((~there).to(torch.uint8), dim=1, stable=True)[:, :count]
            is_target = there.gather(1, at)
            y = batch.y[:, 1:length].gather(1, at).long().masked_fill(~is_target, IGNORED)
            made.append(replace(_cut(batch, batch.x[:, :length]), y=y, at=at.masked_fill(~is_target, 0)))
        return made

    def cut(self, samples: Samples) -> Samples:
        """Return samples cut off behind the last target of any."""
        length = needed_tokens(samples.y)
        return Samples(samples.x[:, :length], samples.y[:, :length], samples.tasks)

    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the targets, in float32, of hidden states [N, L, D]."""
        assert batch.at is not None
        places = batch.at.to(out.device).unsqueeze(2).expand(-1, -1, out.shape[2])
        logits = strategy.head_of_task(batch.task)(out.gather(1, places)).float()
        return F.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORED)

    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return nll [N] in nats per token and exact [N], 0 or 1, of hidden states [N, L, D] and labels [N, L]."""
        scored = y[:, 1:out.shape[1]] != IGNORED
        rows, columns = scored.nonzero(as_tuple=True)
        losses, right = token_scores(out[rows, columns], y[rows, columns + 1].long(), strategy.head_of_task(task))
        sums, wrong = torch.zeros(2, len(y), device=losses.device)
        sums.index_add_(0, rows, losses)
        wrong.index_add_(0, rows, (~right).float())
        return {"nll": sums / scored.sum(1), "exact": (wrong == 0).float()}


class Regression(Objective):
    """Predict a number: mean squared error of the standardized target; `rmse` in the target's unit, and `r2`.

    A sample has one active output, that of its task or the one that all tasks share.
    """

    info = REGRESSION

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches as they are."""
        return list(batches)

    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of each sample's active output of [N, C]."""
        return F.mse_loss(predicted_numbers(strategy.mask(out, batch.tasks, batch.replayed)), batch.y)

    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return the squared error, the target and its square, all standardized."""
        return {"error": (predicted_numbers(out) - y).square(), "target": y, "square": y.square()}

    def metrics(self, strategy: Trained, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `rmse` and `r2`. If all targets of a task are equal, `r2` is 1 without errors and 0 with some."""
        error, variance = means["error"], means["square"] - means["target"].square()
        constant = variance <= NO_VARIANCE
        r2 = torch.where(constant, (error == 0).to(error), 1 - error / variance.masked_fill(constant, 1.0))
        return {RMSE.name: strategy.stream_info.target[1] * error.sqrt(), R2.name: r2}

    def contributions(self, strategy: Trained, scores: Mapping[str, Tensor], means: Mapping[str, Tensor]
                      ) -> dict[str, Tensor]:
        """Return values of items whose means are the metrics.

        That of the root of a mean m of squares s is linear about m: sqrt(m) + (s - m) / (2 sqrt(m)), the influence of
        an item. The variance of a task's targets in `r2` is taken as fixed.
        """
        task = self.metrics(strategy, means)
        share = (scores["error"] - means["error"]) / means["error"].clamp(min=torch.finfo(torch.float64).tiny)
        variance = (means["square"] - means["target"].square()).clamp(min=NO_VARIANCE)
        return {RMSE.name: task[RMSE.name] * (1 + share / 2),
                R2.name: task[R2.name] - (scores["error"] - means["error"]) / variance}


def predicted_numbers(out: Tensor) -> Tensor:
    """Return the one output [N] of [N, C] that takes part for each sample; the others are -inf."""
    return out.amax(1)


def prompts_of(x: Tensor, y: Tensor) -> Tensor:
    """Return tokens x [N, L] up to the first target of each item; what comes after is padding."""
    return x.masked_fill((y != IGNORED).cumsum(1) > 0, tokens.NO_TOKEN)


def _cut(batch: Batch, x: Tensor) -> Batch:
    """Return a batch with inputs x, which may have fewer tokens, and with stored outputs cut off likewise."""
    if batch.frozen is None or x.shape[1] == batch.x.shape[1]:
        return replace(batch, x=x)
    frozen: Mapping[str, Tensor] = {
        name: rows[:, :x.shape[1]] if rows.dim() == tokens.VECTORS and rows.shape[1] == batch.x.shape[1] else rows
        for name, rows in batch.frozen.items()}
    return replace(batch, x=x, frozen=frozen)


_OBJECTIVES: dict[str, Objective] = {objective.info.name: objective
                                     for objective in (Classification(), CausalLM(), Regression())}


def objective_of(name: str) -> Objective:
    """Return the objective of a name."""
    return _OBJECTIVES[name]
