"""What `clbench check` prints besides rules: what a method trains, and which declarations would make it faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from clbench.accounting.flops import FlopCount
from clbench.core.scenario import Scenario
from clbench.report.formatting import join_names
from clbench.strategy.base import Strategy, declares
from clbench.testing.tiny import RECIPE, TASKS, Bench, Make, predict_all, stack_problem, train_tasks
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.loop import TrainingLoop
from clbench.training.phase_cache import PhaseInputs
from clbench.training.prediction_cache import PredictionCache

MUCH = 1.5  # minimum speedup for which a declaration is suggested
CALLED = ("before_task", "phases", "before_phase", "training_samples", "phase_samples", "learning_rates",
          "frozen_modules", "frozen_outputs", "observe", "prepare_batch", "loss", "edit_gradients", "fit", "after_task",
          "forward", "predict", "export", "trainable")  # methods of a strategy
CLOSE = 0.85  # minimum similarity of a name that may be a misspelling
FACTS = ("parts_final", "inputs_only_through_model")
SCENARIOS: tuple[Scenario, ...] = ("task", "class")


class CountedCache(PredictionCache):
    """A cache that counts the FLOPs of verification separately, because with few samples they are most of the total."""

    verification = 0

    def _verify(self, *args: Any) -> None:
        """Compute a batch again and count the FLOPs."""
        with FlopCount() as count:
            super()._verify(*args)
        self.verification += count.total


def suggested_declarations(make: Make) -> list[str]:
    """Return a line for each fact that is not declared, holds on the tiny stream, and would save much computation."""
    lines = []
    for fact in FACTS:
        gains = [gain(make, scenario, fact) for scenario in SCENARIOS]
        if min(gains) >= 1 and max(gains) >= MUCH:
            name = type(make("task").strategy).__name__
            lines.append(f"{name} could declare {fact} = True, which held here: its evaluation would be up to "
                         f"{max(gains):.1f} times as fast (False ends this note)")
    return lines


def gain(make: Make, scenario: Scenario, fact: str) -> float:
    """Return the speedup of evaluations by a declaration, in FLOPs; 0 if it is wrong or the class already sets it."""
    undeclared, declared = make(scenario), make(scenario)
    if undeclared.strategy.owns_loop or is_decided(undeclared.strategy, fact):
        return 0
    cls = type(declared.strategy)
    declared.strategy.__class__ = type(cls.__name__, (cls,), {fact: True})
    try:
        before, after = (total_evaluation_flops(b) for b in (undeclared, declared))
    except Exception:  # if the declaration is wrong, the code of the method can raise any error
        return 0
    return before / max(after, 1)


def is_decided(strategy: Strategy, fact: str) -> bool:
    """Return whether a strategy declares a fact as true, or a subclass of `Strategy` sets it to any value."""
    subclasses = type(strategy).__mro__[:type(strategy).__mro__.index(Strategy)]
    return declares(strategy, fact) or any(fact in vars(cls) for cls in subclasses)


def total_evaluation_flops(b: Bench) -> int:
    """Return the FLOPs of all evaluations of a trial, without the verification of the cache."""
    cache, total = CountedCache(everything=True), 0
    for _ in train_tasks(b):
        with FlopCount() as count:
            predict_all(b, cache)
        total += count.total
    return total - cache.verification


class TrainedGroups(Callback):
    """Counts the parameters that are trained, in the phase with the most, by the first part of their names."""

    def __init__(self) -> None:
        """Start without parameters."""
        self.sizes = Counter[str]()

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Count the parameters of a phase."""
        assert training.train_step is not None
        self.sizes |= group_sizes(training.train_step.trained)


def group_sizes(parameters: Mapping[str, Tensor]) -> Counter[str]:
    """Return the numbers of values of parameters, by the first part of their names: `model.*`."""
    sizes = Counter[str]()
    for name, parameter in parameters.items():
        group, dot, _ = name.partition(".")
        sizes[f"{group}.*" if dot else group] += parameter.numel()
    return sizes


def misspelled_methods(cls: type[Strategy]) -> list[str]:
    """Return a line for each function of a class whose name is close to that of a method that clbench calls."""
    lines = []
    for owner in cls.__mro__[:cls.__mro__.index(Strategy)]:
        for name, value in vars(owner).items():
            near = get_close_matches(name, CALLED, n=1, cutoff=CLOSE)
            if near and callable(value) and not hasattr(Strategy, name):
                lines.append(f"clbench does not call `{name}` of {owner.__name__}; is it meant to be `{near[0]}`?")
    return lines


def training_facts(make: Make) -> list[str]:
    """Return lines on the parameters that a method trains, and on why its trials cannot train as a stack."""
    b, trained = make("task"), TrainedGroups()
    for index in range(TASKS):
        TrainingLoop([b.replica], RECIPE, [trained]).train_task(index)
    if b.strategy.owns_loop:  # it has no phases
        trained.sizes = group_sizes({n: p for n, p in b.strategy.named_parameters() if p.requires_grad})
    groups = [f"{group} ({size:,}{'' if number else ' parameters'})"
              for number, (group, size) in enumerate(trained.sizes.items())]
    lines = [f"trains {join_names(groups, len(groups)) or 'no parameters'}", *misspelled_methods(type(b.strategy))]
    if problem := stack_problem([make("task", seed) for seed in range(2)]):
        lines.append(f"seeds of this method train one by one, also with --stack: {problem}")
    return lines
