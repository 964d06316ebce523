"""Strategy, the interface of methods. Its arguments (StreamInfo, Task, Batch) are in `clbench.strategy.granted`.

A strategy is an `nn.Module`, and everything it remembers is a parameter or a buffer. The harness owns the stream, the
data order, the optimizer, the budget, the evaluation and the clock. For each task in turn it calls:

    before_task(task)                       grow, freeze or reset; parameters with requires_grad are trained
    for each phase, mostly one:
        before_phase(task, phase)           freeze or reset; the phase then gets a new optimizer
        for each step:
            observe(batch)                  with hidden boundaries only: learn as samples pass
            batch = prepare_batch(batch)    random or stateful work: replay, draws from stream_info.generator
            loss(batch)                     a pure function of parameters, buffers and batch
            edit_gradients(gradients)       change gradients, for example project them
    after_task(task)                        consolidate: Fisher information, memory, prototypes
    export(folder, task)                    write files to keep after the run, such as adapters

A strategy with its own training loop, for example one of another library, overrides `fit`, which replaces the steps.
The defaults are sequential fine-tuning (`naive`), so a strategy defines only what it does differently.
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
    """Base of all strategies. Without changes, it is sequential fine-tuning (`naive`).

    Args:
        model: the unchanged network, on its device; the strategy may wrap or replace its layers.
        stream_info: class count, number of tasks, scenario, input shape, generator.
        options: an instance of the options class that the strategy's `StrategyInfo` declares.
    """

    # Pairs of name pattern (fnmatch) and role, such as (("heads.*", "heads"), ("memory_*", "replay")). Reports count
    # storage by role. The first pattern that matches the name of a parameter or buffer gives its role. Without a match,
    # the role is "base". The roles of base classes apply too, after those of the class itself.
    roles: tuple[tuple[str, str], ...] = ()
    # Patterns (fnmatch) of the names of the parameters whose learning rate is `recipe.head_lr`.
    head_parameters: ClassVar[tuple[str, ...]] = ("model.head.*", "heads.*")
    # The reason why a trial of this strategy starts over instead of resuming from a checkpoint. Empty if it can resume:
    # training changes only parameters, buffers and plain attributes (numbers, strings, lists of them).
    not_resumable: ClassVar[str] = ""
    # An option that reduces storage, as users write it: `projections=N`. Empty if there is none.
    keeps_less: ClassVar[str] = ""
    # Whether `loss` and `predict` use their inputs only as arguments of the model (`model(x)`, `model.features(x)`) and
    # of `frozen_outputs`. The model's frozen first blocks are then computed once. It may be a property.
    inputs_only_through_model: bool = True
    # Whether the predictions for a task never change after it is learned (`clbench.strategy.per_task`). Those for test
    # samples are then computed once. A subclass that overrides `loss`, `predict`, `forward` or `forward_task` must set
    # this attribute and the previous one again, else they are false.
    parts_final: bool = False
    # Whether the loss of a batch is the mean of its samples' losses, plus terms that depend on no sample, so that a
    # batch can be divided (`recipe.accumulate`). A subclass that overrides `loss` must set it again.
    loss_is_mean: bool = True
    extra_steps = 0  # optimizer steps in `after_task` of the latest task
    class_mask: Tensor
    starts_over, frozen = Renamed("not_resumable"), Renamed("frozen_modules")  # old names, to be removed in 0.3
    world, active, augment_batch = Renamed("stream_info"), Renamed("class_mask"), Renamed("prepare_batch")

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Store the arguments; subclasses call this method first."""
        super().__init__()
        self.model = model
        self.model_classes = frozenset(map(type, model.modules()))  # without classes that the strategy adds
        self.stream_info = stream_info
        complete = (options if options is not None else NoOptions()).settled(stream_info.pretrained)
        self.options = complete.in_scenario(stream_info.scenario, stream_info.boundaries)
        self.notes: list[str] = []  # for the trial's record, on what `__init__` does that the options do not show
        # The outputs that clbench activates for new samples: "seen" if the loss selects among them itself.
        self.activated: Outputs = self.options.outputs if isinstance(self.options, OutputsOptions) else "seen"
        # class_mask[t, c]: whether output c takes part in the loss of a sample of task t. The harness sets it.
        mask = torch.zeros(stream_info.tasks, stream_info.classes, dtype=torch.bool)
        self.register_buffer("class_mask", mask, persistent=False)

    def before_task(self, task: Task) -> None:
        """Prepare for training on a task: grow, freeze or reset. Default: nothing."""

    def phases(self, task: Task) -> int | Sequence[float]:
        """Return the phases into which the task's steps are divided. Default: 1.

        An int is the number of phases of equal length. A sequence has the relative length of each phase: with (3, 1),
        the first phase has three quarters of the steps. With 0, there are no training steps, the budget remains unused,
        and `after_task` learns the task.
        """
        return 1

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Prepare for a phase (0, 1, ...) of a task; the phase then gets a new optimizer. Default: nothing."""

    def phase_samples(self, task: Task, phase: PhaseSpec) -> Samples | None:
        """Return the samples from which the batches of a phase are drawn, in new passes over these samples.

        It is called after `before_phase`. The default is None: batches come from `training_samples`, and a phase
        continues the pass of the previous phase.
        """
        return None

    def learning_rates(self) -> Mapping[str, float]:
        """Return factors of the recipe's learning rate, by pattern (fnmatch) of parameter names. Default: no factors.

        The first matching pattern counts, as in {"model.head.*": 1.0, "model.*": 0.1}. Without a match, the factor
        is 1. It is called for each phase.
        """
        return {}

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the modules that stay in eval mode in the current phase of the current task. Default: none.

        This does not freeze their parameters: set `requires_grad_(False)` for that.
        """
        return ()

    def frozen_outputs(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return outputs [N, ...] by name, for inputs x [N, *input_shape], that stay constant during the phase.

        If possible, clbench computes them once per phase, without gradients. In `loss`, call `frozen_outputs_of` to get
        the rows of the batch. The output for a sample must not depend on other samples. Default: none.
        """
        return {}

    def frozen_outputs_of(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the `frozen_outputs` of a prepared batch: the stored rows, or new ones if none are stored."""
        if batch.frozen is not None:
            return batch.frozen
        with torch.no_grad():
            return self.frozen_outputs(batch.x)

    def trainable(self) -> int:
        """Return the number of values that the phase can change. Default: values of parameters with requires_grad.

        If the strategy overrides `fit`, this is called after `fit`, for the trained task.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> Strategy:
        """Set the mode of all modules; frozen modules stay in eval mode, so that their running statistics are fixed."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def training_samples(self, task: Task) -> Samples:
        """Return the samples from which the task's batches are drawn. Default: `task.train`."""
        return task.train

    def observe(self, batch: Batch) -> None:
        """Learn from new raw samples before `prepare_batch`, if boundaries are hidden and there is no `Task.train`."""

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch to train on; do all stateful or random work here, on raw inputs. Default: unchanged."""
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a prepared batch, a scalar: a pure function of parameters, buffers and the batch.

        Default: `cross_entropy`, over the active outputs of each sample or the targets of a language model.
        """
        return self.cross_entropy(self(batch.x, batch.task), batch)

    def cross_entropy(self, out: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of the objective (cross-entropy for classes), given `out = self(batch.x, ...)`."""
        return self.objective.loss(self, out, batch)

    @property
    def objective(self) -> Objective:
        """Return the objective that the model is trained for."""
        return objective_of(self.stream_info.objective)

    def collate(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return prepared batches of a stack's members in the form for `loss`, without padding that no text needs."""
        return self.objective.collate(batches) if self.stream_info.is_text else list(batches)

    def head_of_task(self, task: int | None) -> nn.Module:
        """Return a language model's head, from the outputs of `forward` to logits. Default: the model's own head."""
        return self.model.head

    def mask(self, logits: Tensor, tasks: Tensor, replayed: int = 0) -> Tensor:
        """Return logits [N, C], with -inf at the outputs that are not active for the samples' tasks [N].

        If only the current task's outputs are active for new samples (`outputs = "own"` in scenario `class`), all
        outputs so far are active for the last `replayed` samples.
        """
        mask = self.class_mask.index_select(0, tasks)
        if replayed and self.activated == "own" and self.stream_info.seen_compete:
            new_count = len(tasks) - replayed
            mask = torch.cat([mask[:new_count], self.class_mask.any(0).expand(replayed, -1)])
        return logits.masked_fill(~mask, float("-inf"))

    @property
    def outputs(self) -> Outputs:
        """Return which outputs compete for new samples in scenario `class`.

        Default: the choice of the options (`OutputsOptions` or `FixedOutputsOptions`), else `seen`, all outputs so far.
        """
        return self.options.fixed_outputs if isinstance(self.options, FixedOutputsOptions) else self.activated

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients for the optimizer, with the same parameter names. Default: unchanged."""
        return gradients

    def fit(self, task: Task, budget: Budget) -> Tensor:
        """Train on a task with a training loop of the strategy, and return the loss of every step [steps].

        A strategy that overrides this must keep to the budget. clbench then calls only `before_task`, `frozen_modules`,
        `fit`, `trainable`, `after_task`, `predict` and `export`, and it does not vectorize trials.
        """
        raise NotImplementedError

    @property
    def owns_loop(self) -> bool:
        """Return whether the strategy overrides `fit`, which replaces the steps of the harness."""
        return overrides(self, "fit")

    def after_task(self, task: Task) -> None:
        """Consolidate a learned task: Fisher information, memory, prototypes. Default: nothing.

        Report optimizer steps that you take here by `count_steps`.
        """

    def count_steps(self, steps: int) -> None:
        """Add a number of optimizer steps in `after_task` to the steps of the task."""
        self.extra_steps += steps

    def export(self, folder: Path, task: Task) -> None:
        """Write files to keep after the run, such as adapters, to the trial's folder. Default: nothing."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict; buffers take the loaded shapes and dtypes, because memories grow.

        A buffer of the strategy itself (not of a submodule) that does not exist yet is registered.
        """
        for name, loaded in state_dict.items():
            module_name, _, tensor_name = name.rpartition(".")
            try:
                owner = self.get_submodule(module_name)
            except AttributeError:
                continue  # `super().load_state_dict` reports it
            buffer = owner._buffers.get(tensor_name)
            is_buffer = tensor_name in owner._buffers or (owner is self and not hasattr(self, tensor_name))
            if is_buffer and (buffer is None or (buffer.shape, buffer.dtype) != (loaded.shape, loaded.dtype)):
                owner.register_buffer(tensor_name, torch.empty_like(loaded, device=self.class_mask.device))
        return super().load_state_dict(state_dict, strict, assign)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] over all classes for inputs x [N, *input_shape]; language models return hidden states.

        `task` is the index of the task of all samples in x, or None if the scenario does not give it.
        """
        logits: Tensor = self.model(x)
        return logits

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return the logits for the evaluation, and the inferred tasks if the method infers them.

        It must not change any state, because it is also called between steps.
        """
        return Prediction(self(x, task))


def overrides(instance: object, name: str, base: type = Strategy) -> bool:
    """Return whether the class of an instance overrides a method of a base class."""
    return getattr(type(instance), name) is not getattr(base, name)


COMPUTING = ("loss", "predict", "forward", "forward_task")  # methods that compute losses and predictions
DEPENDENCIES = {"inputs_only_through_model": COMPUTING, "parts_final": COMPUTING, "loss_is_mean": ("loss",)}


def declares(strategy: Strategy, fact: str) -> bool:
    """Return whether a strategy declares `fact` as true.

    A declaration holds for its class and for subclasses that override none of the methods in `DEPENDENCIES[fact]`.
    """
    for cls in type(strategy).__mro__:
        if fact in vars(cls):
            return bool(getattr(strategy, fact))
        if any(name in vars(cls) for name in DEPENDENCIES[fact]):
            return False
    return False


if not TYPE_CHECKING:
    __getattr__ = old_classes(globals(), {"World": "StreamInfo"})  # until 0.3
