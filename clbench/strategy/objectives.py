"""Training objectives: how each one collates batches, and computes the loss and the scores of items from outputs.

`classification` and `regression` take outputs [N, C]. `causal-lm` takes hidden states [N, L, D] and applies the
model's head to the scored positions only, because the logits of all positions would take most of the memory.
"""

from __future__ import annotations

import math
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
from clbench.models.scoring import IGNORED, MULTIPLE, item_scores, needed_tokens, round_up, token_scores
from clbench.strategy.granted import Batch, StreamInfo

NO_VARIANCE = 1e-12  # with a smaller variance, standardized targets count as equal up to rounding


class Trained(Protocol):
    """The part of a strategy (`clbench.strategy.base.Strategy`) that an objective uses."""

    stream_info: StreamInfo

    def mask(self, logits: Tensor, tasks: Tensor, replayed: int = 0) -> Tensor:
        """Return logits [N, C], with -inf at outputs that are not active."""

    def head_of_task(self, task: int | None) -> nn.Module:
        """Return the head of a language model."""


class Objective(ABC):
    """Base of training objectives."""

    info: ClassVar[ObjectiveInfo]

    @abstractmethod
    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the prepared batches of a stack's members in the form for `Strategy.loss`."""

    def cut(self, samples: Samples) -> Samples:
        """Return raw samples without the tokens that no batch of them needs. Default: unchanged."""
        return samples

    @abstractmethod
    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar; `out` is the result of `Strategy.forward`."""

    @abstractmethod
    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return scores [N] of N items, by name. `metrics` computes the metrics from their means over items.

        Args:
            strategy: the strategy that returned `out`.
            out: the result of `Strategy.predict`; logits are -inf at outputs that are not active.
            y: labels as the stream stores them.
            task: the argument `task` of `Strategy.predict`.
        """

    def metrics(self, strategy: Trained, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the metrics of each task [T], given the mean `scores` of its items [T]. Default: the means."""
        return dict(means)

    def contributions(self, strategy: Trained, scores: Mapping[str, Tensor], means: Mapping[str, Tensor]
                      ) -> dict[str, Tensor]:
        """Return the contributions [N] of items to each metric, whose mean over a task is the metric. Default: scores.

        Args:
            strategy: the strategy that has these scores.
            scores: the scores of N items.
            means: for each item, the mean scores of its task [N].
        """
        return dict(scores)


class Classification(Objective):
    """Find the class of an input: cross-entropy, accuracy."""

    info = CLASSIFICATION

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches of text, truncated to the length of the longest sample in any of them."""
        return [_cut(batch, x) for batch, x in zip(batches, tokens.shortened([b.x for b in batches]), strict=True)]

    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits [N, C] over each sample's active outputs."""
        return F.cross_entropy(strategy.mask(out, batch.tasks, batch.replayed), batch.y)

    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return 1 for each sample whose label has the highest logit, else 0."""
        return {"accuracy": (out.argmax(1) == y).float()}


class CausalLM(Objective):
    """Predict the next token: cross-entropy over the scored tokens; `nll` and `exact` of each item.

    The training loss is the mean over all scored tokens of the batch, as in transformers. An item's `nll` is the mean
    over the scored tokens of the item, so that long responses do not count more than short ones.
    """

    info = CAUSAL_LM

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches with targets and their positions, truncated after the last target in any of them.

        The numbers of tokens L and of targets K are rounded up to multiples of 16.
        """
        length = max(needed_tokens(batch.y) for batch in batches)
        scored = [b.y[:, 1:length] != IGNORED for b in batches]
        count = min(length - 1, round_up(max(int(s.sum(1).max()) for s in scored), MULTIPLE))
        cut_batches = []
        for batch, is_scored in zip(batches, scored, strict=True):
            positions = torch.argsort((~is_scored).to(torch.uint8), dim=1, stable=True)[:, :count]
            is_target = is_scored.gather(1, positions)
            y = batch.y[:, 1:length].gather(1, positions).long().masked_fill(~is_target, IGNORED)
            cut_batches.append(replace(_cut(batch, batch.x[:, :length]), y=y, at=positions.masked_fill(~is_target, 0)))
        return cut_batches

    def cut(self, samples: Samples) -> Samples:
        """Return samples, truncated after the last target in any of them."""
        length = needed_tokens(samples.y)
        return Samples(samples.x[:, :length], samples.y[:, :length], samples.tasks)

    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the targets, in float32, given hidden states [N, L, D]."""
        assert batch.at is not None
        places = batch.at.to(out.device).unsqueeze(2).expand(-1, -1, out.shape[2])
        logits = strategy.head_of_task(batch.task)(out.gather(1, places)).float()
        return F.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORED)

    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return nll [N] in nats per token and exact [N], 0 or 1, given hidden states [N, L, D] and labels [N, L]."""
        scored = y[:, 1:out.shape[1]] != IGNORED
        rows, columns = scored.nonzero(as_tuple=True)
        token_results = token_scores(out[rows, columns], y[rows, columns + 1].long(), strategy.head_of_task(task))
        nll, exact = item_scores(rows, scored.sum(1), *token_results)
        return {"nll": nll, "exact": exact.float()}


class Regression(Objective):
    """Predict a number: mean squared error of the standardized target; `rmse` in the target's unit, and `r2`.

    A sample has one active output: the output of its task, or the output that all tasks share.
    """

    info = REGRESSION

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches unchanged."""
        return list(batches)

    def loss(self, strategy: Trained, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of the samples' active outputs, given outputs [N, C]."""
        return F.mse_loss(predicted_numbers(strategy.mask(out, batch.tasks, batch.replayed)), batch.y)

    def scores(self, strategy: Trained, out: Tensor, y: Tensor, task: int | None = None) -> dict[str, Tensor]:
        """Return the squared error, the target and the squared target of each sample, in standardized units."""
        wide = torch.float32 if y.device.type == "mps" else torch.float64  # float32 would round squares too much
        return {"error": (predicted_numbers(out) - y).square(), "target": y, "square": y.to(wide).square()}

    def metrics(self, strategy: Trained, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `rmse` and `r2`. If all targets of a task are equal, `r2` is 1 without any error, else 0."""
        error, variance = means["error"], means["square"] - means["target"].square()
        constant = variance <= NO_VARIANCE
        r2 = torch.where(constant, (error == 0).to(error), 1 - error / variance.masked_fill(constant, 1.0))
        return {RMSE.name: strategy.stream_info.target[1] * error.sqrt(), R2.name: r2}

    def contributions(self, strategy: Trained, scores: Mapping[str, Tensor], means: Mapping[str, Tensor]
                      ) -> dict[str, Tensor]:
        """Return the contributions of items, whose means are the metrics.

        For `rmse`, the square root of a mean m of squares s, the contribution is linearized about m:
        sqrt(m) + (s - m) / (2 sqrt(m)). For `r2`, the variance of a task's targets is treated as a constant.
        """
        task = self.metrics(strategy, means)
        share = (scores["error"] - means["error"]) / means["error"].clamp(min=torch.finfo(torch.float64).tiny)
        variance = means["square"] - means["target"].square()
        variance = variance.masked_fill(variance <= NO_VARIANCE, math.inf)  # then r2 does not depend on the items
        return {RMSE.name: task[RMSE.name] * (1 + share / 2),
                R2.name: task[R2.name] - (scores["error"] - means["error"]) / variance}


def predicted_numbers(out: Tensor) -> Tensor:
    """Return the active output of each sample [N], given outputs [N, C] that are -inf everywhere else."""
    return out.amax(1)


def prompts_of(x: Tensor, y: Tensor) -> Tensor:
    """Return tokens x [N, L] in which the first target of each item and everything after it are padding."""
    return x.masked_fill((y != IGNORED).cumsum(1) > 0, tokens.NO_TOKEN)


def _cut(batch: Batch, x: Tensor) -> Batch:
    """Return a batch with inputs x, which may have fewer tokens, and with its stored outputs truncated to match."""
    if batch.frozen is None or x.shape[1] == batch.x.shape[1]:
        return replace(batch, x=x)
    frozen: Mapping[str, Tensor] = {
        name: rows[:, :x.shape[1]] if rows.dim() == tokens.VECTORS and rows.shape[1] == batch.x.shape[1] else rows
        for name, rows in batch.frozen.items()}
    return replace(batch, x=x, frozen=frozen)


_OBJECTIVES: dict[str, Objective] = {objective.info.name: objective
                                     for objective in (Classification(), CausalLM(), Regression())}


def objective_of(name: str) -> Objective:
    """Return the objective with a name."""
    return _OBJECTIVES[name]
