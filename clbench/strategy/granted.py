"""The objects that the harness passes to a strategy: StreamInfo, Task, Batch, PhaseSpec, Budget; and Prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from clbench.core.objective import CLASSIFICATION, HasObjective
from clbench.core.renamed import old_classes
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.samples import Samples
from clbench.experiment.recipe import Recipe


@dataclass(frozen=True)
class StreamInfo(HasObjective):
    """Describe the stream, the scenario, the model's inputs and the random generator to a strategy."""

    classes: int  # C, the number of outputs; 0 for a language model, whose outputs are its vocabulary. For a numeric
    # target, each task of scenario `task` has one output, and in scenario `domain` all tasks share one output
    tasks: int  # T, the number of tasks in the stream
    scenario: Scenario
    input_shape: tuple[int, ...]  # of one prepared sample, (channels, height, width) for images
    generator: torch.Generator  # on the CPU; the only source of random numbers outside layer initialization
    pretrained: bool = False  # whether the model starts from pretrained weights
    prepare: Callable[[Tensor], Tensor] = torch.Tensor.float  # raw samples [N, ...] -> inputs [N, *input_shape]
    is_text: bool = False  # whether inputs are tokens, int32 [N, L], with -1 after the end of a sample; else floats
    objective: str = CLASSIFICATION.name  # the model's training objective, one of `clbench.core.objective.OBJECTIVES`
    target: tuple[float, float] = (0.0, 1.0)  # mean and standard deviation for standardizing a numeric target
    boundaries: bool = True  # whether the strategy knows task boundaries; else the stream is one task, and using its
    # `Task.train` is an error

    @property
    def task_given(self) -> bool:
        """Return whether the test gives the task ID of each sample."""
        return scenario_rules(self.scenario).task_given

    @property
    def shared_outputs(self) -> bool:
        """Return whether all tasks use the same outputs."""
        return scenario_rules(self.scenario).shared_outputs

    @property
    def seen_compete(self) -> bool:
        """Return whether the classes of all tasks so far compete in the test."""
        return scenario_rules(self.scenario).seen_compete


@dataclass(frozen=True)
class Task:
    """The current task: its index, its classes (outputs, in stream order) and its training samples.

    `class_names` has the names of `classes`, in the same order. It is empty if the classes have no names.
    """

    index: int
    classes: tuple[int, ...]
    train: Samples
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One training batch: x [N, ...], y [N] int64, tasks [N] int64 (the task of each sample).

    In `prepare_batch`, x is raw, as the stream stores it. In `loss`, it is a float input of the model. Texts are tokens
    in both, int32 [N, L] with -1 after the last token of a sample. In `loss`, L is the length of the batch's longest
    text. `task` is the task in training. `first_pass` is True if the samples are seen for the first time. The first
    pass over a task can extend over several phases; for `phase_samples`, it is in the first phase only. The last
    `replayed` samples were appended by `extended`. `frozen` has the rows of `Strategy.frozen_outputs` for the batch, or
    None if they are not stored. `Strategy.frozen_outputs_of` returns these rows in both cases.

    For a numeric target, y is standardized, float32 [N].

    For a language model, y has the raw labels, int32 [N, L]: the token itself at a scored position, else -100. In
    `loss`, y has the targets, int64 [N, K], and `at` has the positions whose outputs predict them, int64 [N, K]. If a
    sample has fewer targets than others, y is -100 and `at` is 0 in the remaining places.
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
        """Return this batch with more samples appended, for replay."""
        combined = Samples.concat(Samples(self.x, self.y, self.tasks), extra)
        return replace(self, x=combined.x, y=combined.y, tasks=combined.tasks, replayed=self.replayed + len(extra))

    @property
    def columns(self) -> dict[str, Tensor | Mapping[str, Tensor]]:
        """Return the fields that have a row for each sample, by name, without those that are None."""
        fields = dict(x=self.x, y=self.y, tasks=self.tasks, frozen=self.frozen, at=self.at)
        return {name: rows for name, rows in fields.items() if rows is not None}

    def part(self, begin: int, end: int) -> Batch:
        """Return a batch of the samples `begin` to `end` of this one."""
        def cut(column: Any) -> Any:
            return column[begin:end] if isinstance(column, Tensor) else {name: cut(c) for name, c in column.items()}

        new_count = len(self.y) - self.replayed
        return replace(self, **cut(self.columns), replayed=max(0, end - max(begin, new_count)))


class Prediction(NamedTuple):
    """Logits [N, C] and, if the strategy infers the task, the inferred task of each sample [N].

    For a language model, `logits` has the hidden states [N, L, D].
    """

    logits: Tensor
    task: Tensor | None = None


@dataclass(frozen=True)
class Budget:
    """The training configuration of one task, for a strategy with its own training loop (`Strategy.fit`).

    Args:
        recipe: epochs or iterations, batch size, precision, whether the optimizer's state is kept.
        steps: the number of optimizer steps.
        following: returns the indices of the next batch within the task's samples, int64 [N] on the CPU, in the same
            order as for every other method. After the last batch, the next pass begins.
        optimizer: makes the recipe's optimizer for parameters.
        schedule: makes the recipe's schedule for an optimizer and a number of steps, or None if the rate is constant.
        augment: augments raw training images [N, C, H, W]; None if the benchmark does not. The flag is whether the
            images are replayed. For a whole batch of `following`, the random numbers are the same as for every other
            method. Other images use separate random numbers.
        autocast: the context in which losses are computed: bfloat16 for precision bf16, else nothing. It may be entered
            many times. Call `backward` outside of it.
    """

    recipe: Recipe
    steps: int
    following: Callable[[], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler | None]
    augment: Callable[[Tensor, bool], Tensor] | None = None
    autocast: AbstractContextManager[object] = field(default_factory=nullcontext)


class PhaseSpec(int):
    """The number of a phase of a task, 0, 1, ..., with its number of steps and its learning rates.

    Args:
        number: the number of the phase.
        steps: the number of optimizer steps in the phase.
        lr: the recipe's initial learning rate, before warm-up, schedule and `Strategy.learning_rates`.
        head_lr: that of the heads (`Strategy.head_parameters`) if the recipe has one, else None.
    """

    steps: int
    lr: float
    head_lr: float | None

    def __new__(cls, number: int, steps: int = 0, lr: float = 0.0, head_lr: float | None = None) -> PhaseSpec:
        """Create an int with these attributes."""
        phase = super().__new__(cls, number)
        phase.steps, phase.lr, phase.head_lr = steps, lr, head_lr
        return phase


if not TYPE_CHECKING:
    __getattr__ = old_classes(globals(), {"World": "StreamInfo", "Phase": "PhaseSpec"})  # until 0.3
