"""What the harness gives a strategy: its stream_info, tasks and batches, and phases or a budget of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from clbench.core.objective import CLASSIFICATION, HasObjective
from clbench.core.renamed import old_classes
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.samples import Samples
from clbench.experiment.recipe import Recipe


@dataclass(frozen=True)
class StreamInfo(HasObjective):
    """What a strategy knows about its surroundings: the stream, the scenario, the inputs, the random generator."""

    classes: int  # C, the number of outputs; 0 for a language model, whose outputs are its vocabulary. For a numeric
    # target, each task of scenario `task` has one output, and in scenario `domain` all tasks share one
    tasks: int  # T, the length of the stream
    scenario: Scenario
    input_shape: tuple[int, ...]  # of one prepared sample, (channels, height, width) for images
    generator: torch.Generator  # on the CPU; the only source of randomness outside layer initialization
    pretrained: bool = False  # whether the model came with weights
    prepare: Callable[[Tensor], Tensor] = torch.Tensor.float  # raw samples [N, ...] -> inputs [N, *input_shape]
    is_text: bool = False  # whether inputs are tokens, int32 [N, L], -1 behind the last of a sample; else floats
    objective: str = CLASSIFICATION.name  # what the model is trained for, one of `clbench.core.objective.OBJECTIVES`
    target: tuple[float, float] = (0.0, 1.0)  # mean and deviation that a numeric target is standardized by
    boundaries: bool = True  # whether it is told where tasks end; if not, the stream is one task without `Task.train`

    @property
    def task_given(self) -> bool:
        """Tell whether the test says which task a sample comes from."""
        return scenario_rules(self.scenario).task_given

    @property
    def shared_outputs(self) -> bool:
        """Tell whether all tasks use the same outputs."""
        return scenario_rules(self.scenario).shared_outputs

    @property
    def seen_compete(self) -> bool:
        """Tell whether the classes of all tasks so far compete at the test."""
        return scenario_rules(self.scenario).seen_compete


@dataclass(frozen=True)
class Task:
    """The current task: its index, its classes (outputs, in stream order) and its training samples.

    `class_names` are those of `classes`, in their order; empty where they have none.
    """

    index: int
    classes: tuple[int, ...]
    train: Samples
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One training batch: x [N, ...], y [N] int64, tasks [N] int64 (the task each sample came from).

    In `prepare_batch` x is raw, as the stream stores it; in `loss` it is a float input of the model. Texts are tokens
    in both, int32 [N, L] with -1 after the last token of a sample. In `loss`, L is the length of the batch's longest
    text. `task` is the task being trained. `first_pass` is True if these samples of the task are seen for the first
    time. The last `replayed` samples were added by `extended`. `frozen` are the batch's rows of
    `Strategy.frozen_outputs` if these are stored; `Strategy.frozen_outputs_of` returns them in any case.

    Of a numeric target, y are standardized, float32 [N].

    Of a language model, y are raw labels, int32 [N, L]: the token at a position whose prediction counts, else -100. In
    `loss`, y are targets, int64 [N, K], and `at` the positions whose outputs predict them, int64 [N, K]; where a sample
    has fewer targets than others, y is -100 and `at` is 0.
    """

    x: Tensor
    y: Tensor
    tasks: Tensor
    task: int
    first_pass: bool = True
    replayed: int = 0
    frozen: Mapping[str, Tensor] | None = None
    at: Tensor | None = None

    def extended(self, extra: Samples) -> Batch:
        """Return this batch with more samples (replay) appended to its own."""
        both = Samples.concat(Samples(self.x, self.y, self.tasks), extra)
        return replace(self, x=both.x, y=both.y, tasks=both.tasks, replayed=self.replayed + len(extra))


class Prediction(NamedTuple):
    """Logits [N, C] and, from strategies that infer the task, the inferred task of each sample [N].

    Of a language model, the hidden states [N, L, D] take the place of the logits.
    """

    logits: Tensor
    task: Tensor | None = None


@dataclass(frozen=True)
class Budget:
    """What the recipe grants for one task, for a strategy with its own training loop (`Strategy.fit`).

    Args:
        recipe: epochs or iterations, batch size, precision, whether the optimizer's state is kept.
        following: returns the indices of the next batch within the task's samples, int64 [N] on the CPU; pass after
            pass, in the same order as for every other method.
        optimizer: makes the recipe's optimizer for parameters.
        schedule: makes the recipe's schedule for an optimizer over a number of steps; None if the rate is constant.
        augment: augments raw training images [N, C, H, W]; None if the benchmark does not. The flag says whether they
            are replayed. For the batches of `following`, each given as a whole, the draws are the same as for every
            other method; everything else gets draws of its own.
    """

    recipe: Recipe
    following: Callable[[], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler | None]
    augment: Callable[[Tensor, bool], Tensor] | None = None


class PhaseSpec(int):
    """The number of a phase of a task, 0, 1, ..., and what the harness grants it.

    Args:
        number: of the phase.
        steps: optimizer steps it has.
        lr: learning rate that the recipe begins with (before warm-up, schedule and `Strategy.learning_rates`).
    """

    steps: int
    lr: float

    def __new__(cls, number: int, steps: int = 0, lr: float = 0.0) -> PhaseSpec:
        """Make the number."""
        phase = super().__new__(cls, number)
        phase.steps, phase.lr = steps, lr
        return phase


if not TYPE_CHECKING:
    __getattr__ = old_classes(globals(), {"World": "StreamInfo", "Phase": "PhaseSpec"})  # until 0.3
