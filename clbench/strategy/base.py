"""Strategy, the interface of methods; what it is given (StreamInfo, Task, Batch) is in `clbench.strategy.granted`.

A strategy is an `nn.Module`, and everything it remembers is a parameter or a buffer. The harness owns the stream, the
data order, the optimizer, the budget, the evaluation and the clock. For each task in turn it calls:

    before_task(task)                       grow, freeze, reset; what is trained is what requires_grad
    for each step:
        observe(batch)                      with hidden boundaries only: learn as samples pass
        batch = prepare_batch(batch)        outside the pure part: replay, random draws from stream_info.generator
        loss(batch)                         pure in parameters, buffers and batch
        edit_gradients(gradients)           projections and the like
    after_task(task)                        consolidate: Fisher, memory, prototypes
    export(folder, task)                    write files that outlive the run: adapters, say

A strategy with its own training loop (one from another library, say) overrides `fit`, which replaces the steps. The
defaults are naive fine-tuning, so that a strategy only defines what it does differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from clbench.core.options import NoOptions, Options
from clbench.core.renamed import OldNames, Renamed, old_classes
from clbench.core.scenario import Outputs
from clbench.data.samples import Samples
from clbench.models.network import Network
from clbench.strategy.common_options import FixedOutputsOptions, OutputsOptions
from clbench.strategy.granted import Batch, Budget, PhaseSpec, Prediction, StreamInfo, Task
from clbench.strategy.objectives import Objective, objective_of

__all__ = ["Batch", "Prediction", "Strategy", "StreamInfo", "Task", "declares", "overrides"]


class Strategy(OldNames, nn.Module):
    """Base of all strategies; as it stands, it is naive fine-tuning.

    Args:
        model: the network before any method touched it, on its device; the strategy may wrap or replace its layers.
        stream_info: class count, number of tasks, scenario, input shape, generator.
        options: an instance of the options class that the strategy's `StrategyInfo` declares.
    """

    # (name pattern, role) pairs: the first pattern that matches a parameter or buffer (fnmatch) gives its role in the
    # footprint, as in (("heads.*", "heads"), ("memory_*", "replay")); without a match the role is "base". The roles of
    # base classes apply too, after the class's own.
    roles: tuple[tuple[str, str], ...] = ()
    # Patterns (fnmatch) of the parameters that `recipe.head_lr` is the learning rate of.
    head_parameters: ClassVar[tuple[str, ...]] = ("model.head.*", "heads.*")
    # Why a trial of this strategy starts over instead of being resumed from a checkpoint. Empty if it can be resumed:
    # all that learning changes is in parameters, buffers and plain attributes (numbers, strings, lists of them).
    not_resumable: ClassVar[str] = ""
    # What makes it keep less, as it is written behind its name: `projections=N`. Empty if no option does.
    keeps_less: ClassVar[str] = ""
    # Whether `loss` and `predict` do nothing with their inputs but give them to the model (`model(x)`,
    # `model.features(x)`) and to `frozen_outputs`. clbench then computes the model's frozen first blocks once.
    inputs_only_through_model: bool = True
    # Whether what is predicted for a task never changes once the task is learned (`clbench.strategy.per_task`).
    # Predictions for test samples are then computed once. Both may be properties. A subclass that overrides `loss`,
    # `predict`, `forward` or `forward_task` declares them anew: what is inherited does not count there.
    parts_final: bool = False
    # Whether the loss of a batch is the mean of the losses of its samples, plus terms without samples, so that a batch
    # can be divided (`recipe.accumulate`). A subclass that overrides `loss` declares it anew.
    loss_is_mean: bool = True
    extra_steps = 0  # taken in `after_task` of the latest task
    class_mask: Tensor
    starts_over, frozen = Renamed("not_resumable"), Renamed("frozen_modules")  # until 0.3
    world, active, augment_batch = Renamed("stream_info"), Renamed("class_mask"), Renamed("prepare_batch")

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Keep the model; subclasses call this first."""
        super().__init__()
        self.model = model
        self.stream_info = stream_info
        complete = (options if options is not None else NoOptions()).settled(stream_info.pretrained)
        self.options = complete.in_scenario(stream_info.scenario, stream_info.boundaries)
        # What `__init__` does otherwise than a reader of the options would think; the trial's record has it.
        self.notes: list[str] = []
        # Which outputs the harness activates for new samples; a loss that fixes its own has all so far to choose from.
        self.activated: Outputs = self.options.outputs if isinstance(self.options, OutputsOptions) else "seen"
        # class_mask[t, c]: does output c take part in the loss of a sample of task t? Set by the harness; not stored.
        mask = torch.zeros(stream_info.tasks, stream_info.classes, dtype=torch.bool)
        self.register_buffer("class_mask", mask, persistent=False)

    def before_task(self, task: Task) -> None:
        """Prepare for training on a task: grow, freeze, reset. Default: nothing."""

    def phases(self, task: Task) -> int | Sequence[float]:
        """Return the phases that the task's budget of steps is split into. Default: 1.

        A number means so many of equal length; numbers in a sequence, what each has in proportion to the others: with
        (3, 1) the first has three quarters of the steps. With 0 there are no training steps and the budget is left
        unused; everything is learned in `after_task`.
        """
        return 1

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Prepare for a phase (0, 1, ...) of a task; a new optimizer is made afterwards. Default: nothing."""

    def phase_samples(self, task: Task, phase: PhaseSpec) -> Samples | None:
        """Return samples of its own that a phase's batches are drawn from, in passes of its own.

        It is asked after `before_phase`. Default: None, which means those of `training_samples`, whose passes go on
        from phase to phase.
        """
        return None

    def learning_rates(self) -> Mapping[str, float]:
        """Return what multiplies the recipe's learning rate, by patterns (fnmatch) of parameters' names. Default: none.

        The first pattern that fits counts, as in {"model.head.*": 1.0, "model.*": 0.1}; where none does, it is 1. It is
        asked for each phase.
        """
        return {}

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the modules that do not learn in the current phase of the current task. Default: none.

        They stay in eval mode. Parameters in them with requires_grad do learn.
        """
        return ()

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return outputs [N, ...] by name that the current phase does not change, for inputs x [N, *input_shape].

        clbench computes them once per phase if it can, without gradients. `loss` gets those of its batch from
        `frozen_outputs_of`. The output for a sample must not depend on the other samples. Default: none.
        """
        return {}

    def frozen_outputs_of(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the `frozen_outputs` of a prepared batch: stored ones, or computed now."""
        if batch.frozen is not None:
            return batch.frozen
        with torch.no_grad():
            return self.frozen_outputs(batch.x)

    def trainable(self) -> int:
        """Return how many numbers the current phase can change. Default: all of each parameter that requires_grad.

        For a strategy with its own loop it is called after `fit`, about the task that was trained.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> Strategy:
        """Set the mode of all but the frozen modules, which stay in eval mode: their normalization must not drift."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def training_samples(self, task: Task) -> Samples:
        """Return the samples that the task's batches are drawn from. Default: the task's own."""
        return task.train

    def observe(self, batch: Batch) -> None:
        """Learn from new raw samples before `prepare_batch`, in place of `Task.train`; with hidden boundaries only."""

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch to train on: the stateful or random part of a step, on raw inputs. Default: unchanged."""
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a prepared batch, a scalar; pure in parameters, buffers and the batch.

        Default: mean cross-entropy, over the active outputs of each sample or the targets of a language model.
        """
        return self.cross_entropy(self(batch.x, batch.task), batch)

    def cross_entropy(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of what `forward` returned for a batch, by the objective."""
        return self.objective.loss(self, out, batch)

    @property
    def objective(self) -> Objective:
        """Return what the model is trained for."""
        return objective_of(self.stream_info.objective)

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return prepared batches of a stack as `loss` takes them; those of text have no more tokens than they need."""
        return self.objective.collate(batches) if self.stream_info.is_text else list(batches)

    def head_of_task(self, task: int | None) -> nn.Module:
        """Return the head that makes a language model's logits of what `forward` returned. Default: the model's."""
        return self.model.head

    def mask(self, logits: Tensor, tasks: Tensor, replayed: int = 0) -> Tensor:
        """Return logits [N, C] with the outputs that are not active for tasks [N] set to -inf.

        The last `replayed` samples compete among all classes so far where only the current task's new ones do not.
        """
        mask = self.class_mask.index_select(0, tasks)
        if replayed and self.activated == "own" and self.stream_info.seen_compete:
            new = len(tasks) - replayed
            mask = torch.cat([mask[:new], self.class_mask.any(0).expand(replayed, -1)])
        return logits.masked_fill(~mask, float("-inf"))

    @property
    def outputs(self) -> Outputs:
        """Return the outputs among which the labels of new samples compete in scenario `class`.

        Default: what the options choose (`OutputsOptions`) or fix (`FixedOutputsOptions`), else all seen so far.
        """
        return self.options.fixed_outputs if isinstance(self.options, FixedOutputsOptions) else self.activated

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients to step with, by parameter name. Default: unchanged."""
        return gradients

    def fit(self, task: Task, budget: Budget) -> Tensor:
        """Train on a task by the strategy's own loop and return the loss of every step [steps].

        A strategy that overrides this is responsible for keeping to the budget. The harness then calls none of the
        methods that belong to a step and does not stack seeds. Everything else stays the same.
        """
        raise NotImplementedError

    @property
    def owns_loop(self) -> bool:
        """Return whether the strategy trains by its own `fit` instead of the harness's steps."""
        return overrides(self, "fit")

    def after_task(self, task: Task) -> None:
        """Consolidate what the task taught: Fisher, memory, prototypes. Default: nothing.

        Optimizer steps that are taken here are reported by `count_steps`.
        """

    def count_steps(self, steps: int) -> None:
        """Add optimizer steps, taken in `after_task`, to those that the task cost."""
        self.extra_steps += steps

    def export(self, folder: Path, task: Task) -> None:
        """Write files that outlive the run to the trial's own folder, after a task. Default: nothing."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state as any module does, but let buffers take the loaded sizes, since memories grow.

        A buffer directly on the strategy that does not exist yet is registered.
        """
        for name, loaded in state_dict.items():
            where, _, last = name.rpartition(".")
            try:
                owner = self.get_submodule(where)
            except AttributeError:
                continue  # reported below
            known = owner._buffers.get(last)
            is_buffer = last in owner._buffers or (owner is self and not hasattr(self, last))
            if is_buffer and (known is None or (known.shape, known.dtype) != (loaded.shape, loaded.dtype)):
                owner.register_buffer(last, torch.empty_like(loaded, device=self.class_mask.device))
        return super().load_state_dict(state_dict, strict, assign)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] over all classes for inputs x [N, *input_shape]; of language models hidden states.

        `task` is the index of the task that all of x comes from; None where the scenario does not give it.
        """
        logits: Tensor = self.model(x)
        return logits

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return what the evaluation uses, also between steps, without changing any state; the inferred task too."""
        return Prediction(self(x, task))


def overrides(instance: object, name: str, base: type = Strategy) -> bool:
    """Return whether the class of an instance overrides a method of a base class."""
    return getattr(type(instance), name) is not getattr(base, name)


COMPUTING = ("loss", "predict", "forward", "forward_task")  # methods that compute losses and predictions
BEHIND = {"inputs_only_through_model": COMPUTING, "parts_final": COMPUTING, "loss_is_mean": ("loss",)}


def declares(strategy: Strategy, fact: str) -> bool:
    """Return whether a strategy declares a fact, one of `BEHIND`.

    A declaration holds for the class that makes it and for subclasses that keep the methods that are behind it.
    """
    for cls in type(strategy).__mro__:
        if fact in vars(cls):
            return bool(getattr(strategy, fact))
        if any(name in vars(cls) for name in BEHIND[fact]):
            return False
    return False


if not TYPE_CHECKING:
    __getattr__ = old_classes(globals(), {"World": "StreamInfo"})  # until 0.3
