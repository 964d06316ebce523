"""Conformance checks for strategies: the rules on which the harness relies, with a message for each violation.

from clbench.testing import CHECKS, check

    @pytest.mark.parametrize("name", CHECKS)
    def test_conforms(name):
        check("my-method", name)

Each check runs the strategy on a tiny synthetic stream (three tasks of two classes) in one or more scenarios.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from clbench.core import seeds
from clbench.core.errors import ClbenchError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.core.scenario import SCENARIOS
from clbench.persistence.snapshot import read, restore, write
from clbench.persistence.strategy_state import SnapshotError
from clbench.results.store import STATE
from clbench.testing.objectives import check_objectives
from clbench.testing.rules import (
    check_budget,
    check_declarations,
    check_learning_rates,
    check_stack,
    check_state,
    check_stored_samples,
    check_task_free,
)
from clbench.testing.suggestions import suggested_declarations, training_facts
from clbench.testing.tiny import (
    RECIPE,
    SAMPLES,
    TASKS,
    Make,
    NonConforming,
    attributes_snapshot,
    bench,
    check_batches,
    fixed_statistics,
    snapshot,
    tiny_stream,
    training,
    unchanged,
)
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop
from clbench.training.phase_cache import are_identical


def check_logits(make: Make) -> None:
    """Check that `predict` returns logits [N, C] for learned, future and unknown tasks, the same in every batch.

    Logits must not be NaN, and each sample must have a finite one. `forward` may return other logits, because a method
    may predict with an average of its weights.
    """
    for scenario, rules in SCENARIOS.items():
        b = make(scenario)
        for learned in range(TASKS + 1):
            if learned:
                b.learn(learned - 1)
            inputs = [task.test.x for task in b.stream.tasks]
            outputs = []
            for index, x in enumerate(inputs):
                given_task = index if rules.task_given else None
                logits, repeated_logits = (b.logits(x, given_task) for _ in range(2))
                location = f"scenario {scenario}, task {index + 1} after {learned} tasks"
                if logits.shape != (SAMPLES, b.stream.classes):
                    raise NonConforming(f"{location}: logits are {list(logits.shape)}, "
                                        f"expected {[SAMPLES, b.stream.classes]}")
                if torch.isnan(logits).any() or not torch.isfinite(logits).any(dim=1).all():
                    raise NonConforming(f"{location}: logits have NaN, or a sample without any finite logit")
                if not torch.equal(logits, repeated_logits):
                    raise NonConforming(f"{location}: predict gives different logits for the same samples")
                if rules.task_given:
                    check_batches(b, x, logits, given_task, location)
                outputs.append(logits)
            if not rules.task_given:  # samples of different tasks in turn
                mixed, expected = (torch.stack(tensors, dim=1).flatten(0, 1) for tensors in (inputs, outputs))
                check_batches(b, mixed, expected, None, f"scenario {scenario}, all tasks after {learned} tasks")


def check_loss_is_pure(make: Make) -> None:
    """Check that `loss` gives the same value twice and changes neither parameters, buffers nor the generator.

    The second call must not change plain attributes either, such as a counter of calls. Neither `loss` nor
    `prepare_batch` may leave a module in eval mode, because the following steps would train in it.
    """
    case = training(make, 1) or training(make, 0)
    if case is None:
        return  # the method has no training steps
    b, batch = case
    in_training = {module for module in b.strategy.modules() if module.training}
    batch = b.strategy.prepare_batch(batch)
    batch = replace(batch, x=b.stream.prepare(batch.x))
    state, generator_state = snapshot(b.strategy), b.strategy.stream_info.generator.get_state()
    with fixed_statistics(b.strategy), seeds.scope(0):
        loss = b.strategy.loss(batch)
    attributes = attributes_snapshot(b.strategy)
    with fixed_statistics(b.strategy), seeds.scope(0):
        repeated_loss = b.strategy.loss(batch)
    if loss.dim() != 0 or not torch.isfinite(loss):
        raise NonConforming(f"loss must be a finite scalar, got {loss.detach()}")
    if not torch.equal(loss, repeated_loss):
        raise NonConforming(f"loss of the same batch is {loss.item()} and then {repeated_loss.item()}: it is not pure")
    unchanged(state, snapshot(b.strategy), "loss")
    unchanged(attributes, attributes_snapshot(b.strategy), "loss")
    if not torch.equal(generator_state, b.strategy.stream_info.generator.get_state()):
        raise NonConforming("loss draws from stream_info.generator: draw in prepare_batch, loss must be pure")
    for name, module in b.strategy.named_modules():
        if module in in_training and not module.training:
            raise NonConforming(f"prepare_batch or loss leaves {name or 'the strategy'} in eval mode, in which all "
                                "following steps of the phase train: restore the mode")


def check_predict_changes_nothing(make: Make) -> None:
    """Check that an evaluation changes no state, so that the strategy cannot learn from test data.

    Besides the state, the results of training after an evaluation are compared with those of training without it.
    """
    for scenario in ("task", "class"):
        b, unevaluated = make(scenario), make(scenario)
        b.learn(0)
        state, generator_state = snapshot(b.strategy), b.strategy.stream_info.generator.get_state()
        global_states = seeds.state()
        evaluate(b.strategy, b.stream, scenario, learned=1)
        attributes = attributes_snapshot(b.strategy)  # may hold the task of the last call, which the next call replaces
        evaluate(b.strategy, b.stream, scenario, learned=1)
        unchanged(state, snapshot(b.strategy), "predict")
        unchanged(attributes, attributes_snapshot(b.strategy), "predict")
        if (not torch.equal(generator_state, b.strategy.stream_info.generator.get_state())
                or global_states != seeds.state()):
            raise NonConforming("predict draws random numbers: an evaluation must not move what follows")
        b.learn(1)
        unevaluated.learn(0)
        unevaluated.learn(1)
        unchanged(snapshot(unevaluated.strategy), snapshot(b.strategy), "an evaluation before training")


def check_given_generator(make: Make) -> None:
    """Check that `prepare_batch` and `after_task` do not draw from global generators, only `stream_info.generator`."""
    b = make("task")
    b.learn(0)
    index = 1
    task = b.replica.begin(index)
    with b.replica.seed_training(index):
        TrainingLoop([b.replica], RECIPE).take_task_steps([task])
    calls: dict[str, Callable[[], object]] = {"prepare_batch": lambda: b.strategy.prepare_batch(b.batch(index)),
                                              "after_task": lambda: b.strategy.after_task(task)}
    for name in ["after_task"] if b.strategy.owns_loop else calls:
        global_states = seeds.state()
        calls[name]()
        if global_states != seeds.state():
            raise NonConforming(f"{name} draws from a global generator of torch, NumPy or Python: use "
                                "generator=self.stream_info.generator")


def check_repeatable(make: Make) -> None:
    """Check that the same seed gives the same parameters and buffers."""
    final_states = []
    for global_seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            b = make("class")
            for index in range(TASKS):
                b.learn(index)
        final_states.append(snapshot(b.strategy))
    unchanged(final_states[0], final_states[1], "a second run with the same seed")


def check_copy(make: Make) -> None:
    """Check that training a deep copy does not change the original."""
    b = make("task")
    b.learn(0)
    state = snapshot(b.strategy)
    twin = replace(b, strategy=copy.deepcopy(b.strategy))
    twin.learn(1)
    unchanged(state, snapshot(b.strategy), "training a deep copy")


def check_trains(make: Make) -> None:
    """Check that every task changes a parameter or a buffer."""
    b = make("task")
    for index in range(TASKS):
        before = snapshot(b.strategy)
        b.learn(index)
        if all(n in before and are_identical(before[n], t) for n, t in snapshot(b.strategy).items()):
            raise NonConforming(f"training on task {index + 1} changed no parameter and no buffer")


def check_checkpoint(make: Make) -> None:
    """Check that a trial that resumes from a checkpoint after two tasks gives the same result as without interruption.

    If the trial cannot resume, the strategy must give the reason in `not_resumable`.
    """
    uninterrupted, interrupted, resumed = (make("task") for _ in range(3))
    for index in range(TASKS - 1):
        uninterrupted.learn(index)
        interrupted.learn(index)
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / STATE
            write(path, interrupted.replica, TASKS - 1)
            restore(read(path), resumed.replica, RECIPE)
    except SnapshotError as error:
        if interrupted.strategy.not_resumable:
            return
        raise NonConforming(f"a trial cannot resume from a checkpoint: {error}. If that is not possible, give the "
                            "reason in the class attribute not_resumable; the rule `state` still applies, so that "
                            "stored tensors are counted") from None
    unchanged(snapshot(uninterrupted.strategy), snapshot(resumed.strategy), "going on from a checkpoint")
    uninterrupted.learn(TASKS - 1)
    resumed.learn(TASKS - 1)
    unchanged(snapshot(uninterrupted.strategy), snapshot(resumed.strategy), "learning on from a checkpoint")
    for index in range(TASKS):
        x = uninterrupted.stream.tasks[index].test.x
        if not torch.equal(*(b.logits(x, index) for b in (uninterrupted, resumed))):
            raise NonConforming(f"after a checkpoint the logits of task {index + 1} are others")


CHECKS: dict[str, Callable[[Make], None]] = {
    "logits": check_logits,
    "state": check_state,
    "loss-is-pure": check_loss_is_pure,
    "predict-changes-nothing": check_predict_changes_nothing,
    "given-generator": check_given_generator,
    "repeatable": check_repeatable,
    "copy": check_copy,
    "trains": check_trains,
    "checkpoint": check_checkpoint,
    "learning-rates": check_learning_rates,
    "declarations": check_declarations,
    "task-free": check_task_free,
    "stack": check_stack,
    "stored-samples": check_stored_samples,
    "budget": check_budget,
    "objectives": check_objectives,
}


def check(method: str | StrategyInfo, name: str, options: Mapping[str, Any] | None = None,
          device: torch.device | str = "cpu") -> None:
    """Run one of `CHECKS` on a method with options, on a device; `method` is its name or its declaration.

    Raises:
        NonConforming: the method breaks the rule; the message explains how.
        ClbenchError: there is no such method, check or option.
    """
    if name not in CHECKS:
        raise ClbenchError(f"no check {name!r}; there are {', '.join(CHECKS)}")
    CHECKS[name](maker(method, options, device))


def describe(method: str | StrategyInfo, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return facts about the training of a method that keeps the rules, a line for each.

    The lines say which parameters are trained, and why trials cannot train as a stack, if they cannot. `method` is the
    method's name or its declaration.
    """
    return training_facts(maker(method, options))


def suggest(method: str | StrategyInfo, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return suggestions of declarations that would make a method's evaluation faster, a line for each.

    `method` is the method's name or its declaration.
    """
    return suggested_declarations(maker(method, options))


def maker(method: str | StrategyInfo, options: Mapping[str, Any] | None, device: torch.device | str = "cpu") -> Make:
    """Return a function from a scenario to a `Bench` of a method; a seed, a stream and options are optional."""
    info = method if isinstance(method, StrategyInfo) else discover().strategy(method)
    return lambda scenario, seed=0, stream=None, **others: bench(
        info, {**(options or {}), **others}, scenario, seed, stream=(stream or tiny_stream(scenario)).to(device))
