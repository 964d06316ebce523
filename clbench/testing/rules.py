"""Further checks: state, learning rates, budgets, declarations, hidden boundaries, stacks and stored samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from clbench.core import seeds
from clbench.core.errors import PluginError, SpecError
from clbench.core.option_marks import PerMember, marks
from clbench.core.torch_private import attributes_of
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.strategy.base import Strategy
from clbench.strategy.replay import SampleMemory
from clbench.testing.tiny import (
    RECIPE,
    SAMPLES,
    TASKS,
    DividedLosses,
    Make,
    NonConforming,
    find_stored,
    predict_all,
    stack_problem,
    tiny_stream,
    train_tasks,
)
from clbench.training.costs import measure, role
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop
from clbench.training.phase_cache import are_identical
from clbench.training.prediction_cache import PredictionCache
from clbench.training.sampling import StreamSampler
from clbench.training.stream_loop import StreamLoop

STEPS = 5  # of a budget in iterations; no number of whole passes
SIZES = ((SAMPLES,) * TASKS, (44, 28), (3, 58, 11))  # of tasks, for three divisions of the samples; batches have 8


def check_state(make: Make) -> None:
    """Check that no attribute holds a tensor, an array or a module that is not registered in the strategy.

    Collections and dataclasses, such as `Samples`, may not hold them either. Other objects, such as a strategy of
    another library, are not searched. Attributes of the strategy's class are shared by all trials of a process.
    """
    b = make("task")
    for index in range(TASKS):
        b.learn(index)
    visited = {id(module) for module in b.strategy.modules()} | {id(b.strategy.stream_info)}
    attributes = [(f"{name}.{attribute}".lstrip("."), value) for name, module in b.strategy.named_modules()
                  for attribute, value in attributes_of(module)]
    attributes += [(f"{cls.__name__}.{attribute}", value) for cls in type(b.strategy).__mro__
                   if issubclass(cls, Strategy) for attribute, value in vars(cls).items()]
    for name, value in attributes:
        for stored in find_stored(value, visited):
            raise NonConforming(f"{name} holds a {type(stored).__name__} that is neither parameter, buffer nor "
                                "registered module: use register_buffer or nn.ModuleList, or it is lost in "
                                "checkpoints and not counted")


def check_learning_rates(make: Make) -> None:
    """Check that every pattern of `learning_rates` matches a parameter; a misspelled pattern would have no effect."""
    b = make("task")
    unmatched: dict[str, bool] = {}
    for index in range(TASKS):
        b.learn(index)
        names = [name for name, _ in b.strategy.named_parameters()]
        for pattern in b.strategy.learning_rates():
            unmatched[pattern] = unmatched.get(pattern, True) and not any(fnmatchcase(name, pattern) for name in names)
    for pattern, is_unmatched in unmatched.items():
        if is_unmatched:
            raise NonConforming(f"learning_rates has {pattern!r}, which fits the name of no parameter")


def check_budget(make: Make) -> None:
    """Check that `fit` takes no more optimizer steps than its budget has, and that `after_task` reports its steps."""
    b = make("task")
    recipe = RECIPE.model_copy(update={"epochs": None, "iterations": STEPS}) if b.strategy.owns_loop else RECIPE
    loop = TrainingLoop([b.replica], recipe)
    for index in range(TASKS):
        task = b.replica.begin(index)
        with b.replica.seed_training(index), optimizer_steps() as counts:
            result, = loop.take_task_steps([task])
        steps = max(result.steps, *counts.values(), 0)
        if b.strategy.owns_loop and steps > STEPS:
            raise NonConforming(f"`fit` took {steps} optimizer steps in task {index + 1}, but its budget is {STEPS} "
                                "(--iterations): take budget.steps steps")
        with optimizer_steps() as counts:
            b.replica.finish(task)
        steps = max(counts.values(), default=0)
        if steps > b.strategy.extra_steps:
            raise NonConforming(f"after_task took {steps} optimizer steps in task {index + 1}, and reported "
                                f"{b.strategy.extra_steps}: call self.count_steps(n)")


@contextmanager
def optimizer_steps() -> Iterator[Counter[int]]:
    """Count the steps of each optimizer inside the block, by its ID, because a method may have several."""
    counts = Counter[int]()
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: counts.update([id(optimizer)]))
    try:
        yield counts
    finally:
        hook.remove()


def check_task_free(make: Make) -> None:
    """Check that the result of a method that is declared `task_free` does not depend on the hidden boundaries.

    The streams have the same samples in the same order, but they are evaluated at different boundaries. If the options
    need boundaries (`Options.needs_boundaries`), there is nothing to check.
    """
    for scenario in ("class", "domain"):
        b = make(scenario)
        if not b.task_free or b.strategy.options.in_scenario(scenario, boundaries=False).needs_boundaries:
            return
        outcomes = [train_strategy(make, scenario, divide_tasks(tiny_stream(scenario), sizes, b.seed))
                    for sizes in SIZES]
        for sizes, (state, generator_state) in zip(SIZES[1:], outcomes[1:], strict=True):
            first_state, first_generator_state = outcomes[0]
            location = f"scenario {scenario}, hidden boundaries after {list(accumulate(sizes))} samples instead of " \
                       f"{list(accumulate(SIZES[0]))}"
            if state.keys() != first_state.keys():
                raise NonConforming(f"{location}: it keeps other tensors, {sorted(state.keys() ^ first_state.keys())}")
            for name, tensor in first_state.items():
                if not are_identical(tensor, state[name]):
                    raise NonConforming(f"{location}: {name} is another, so it knows where tasks end")
            if not torch.equal(generator_state, first_generator_state):
                raise NonConforming(f"{location}: it draws other random numbers, so it knows where tasks end")


def divide_tasks(stream: Stream, sizes: Sequence[int], seed: int) -> Stream:
    """Return a stream with hidden boundaries and the same order of samples as `stream`, divided into other tasks."""
    order = StreamSampler([task.train for task in stream.tasks], 1, seed)
    samples = Samples.concat(*(task.train.take(rows) for task, rows in zip(stream.tasks, order.rows, strict=True)))
    tasks = []
    for index, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        rows = torch.arange(end - size, end)
        shuffled = torch.randperm(size, generator=seeds.generator(seed, "data", index))  # as the harness will shuffle
        tasks.append(replace(stream.tasks[index], train=samples.take(rows[shuffled.argsort()])))
    return replace(stream, tasks=tuple(tasks), hidden=True)


def train_strategy(make: Make, scenario: str, stream: Stream) -> tuple[dict[str, Tensor], Tensor]:
    """Return the state of a strategy after training on a stream, and the state of its generator."""
    b = make(scenario, stream=stream)
    loop = StreamLoop([b.replica], RECIPE.model_copy(update={"epochs": 1}))
    for index in range(len(stream.tasks)):
        loop.train_task(index)
        evaluate(b.strategy, b.stream, b.scenario, index + 1)
    mask = {"class_mask": b.strategy.class_mask}  # not part of state_dict
    return {**b.strategy.state_dict(), **mask}, b.strategy.stream_info.generator.get_state()


def check_stack(make: Make) -> None:
    """Check that two trials that train together, as a stack, end with the same tensors as when each trains alone.

    They differ in their seed and their `Scalar` options. If they cannot train together, there is nothing to check. They
    train with SGD, because Adam takes a large step even where a gradient is only a rounding error.
    """
    recipe, chosen = RECIPE.model_copy(update={"optimizer": "sgd"}), [{}, {"seed": 1, **other_scalars(make)}]
    stack = [make("task", **values) for values in chosen]
    if stack_problem(stack, recipe):
        return
    for member, values in zip(stack, chosen, strict=True):
        single = make("task", **values)
        if stack_problem([single], recipe):
            return  # other rules report the error
        tensors = member.strategy.state_dict()
        for name, expected in single.strategy.state_dict().items():
            if name not in tensors or not is_close(tensors[name], expected):
                raise NonConforming(f"{name} has other values if seeds 0 and 1 train together, as on a GPU, than if "
                                    "each trains alone. Store values that the loss reads and that differ between "
                                    "trials as parameters, buffers or options of type Scalar")


def other_scalars(make: Make) -> dict[str, float]:
    """Return another allowed value of each `Scalar` option that has one."""
    options, others = make("task").strategy.options, dict[str, float]()
    for name in marks(type(options), PerMember):
        value = getattr(options, name)
        for other in () if value is None else (1.5 * value + 0.1, value / 2):
            try:
                make("task", **others, **{name: other})
            except SpecError:
                continue
            others[name] = other
            break
    return others


def is_close(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor equals the expected one up to 0.1% of its largest value, for the sake of rounding."""
    if tensor.shape != expected.shape:
        return False
    numbers = expected[torch.isfinite(expected)].double()
    atol = 0.001 * float(numbers.abs().max()) if len(numbers) else 0.0
    return torch.allclose(tensor.double(), expected.double(), rtol=0, atol=atol, equal_nan=True)


SAMPLE_BUFFERS = ("memory_x", "memory_y", "memory_tasks")  # of a `SampleMemory`


def check_stored_samples(make: Make) -> None:
    """Check that stored samples have the role "replay", by which reports count them.

    The buffers of a `SampleMemory` hold samples by definition. Another parameter or buffer holds samples if one of its
    rows equals a training sample of the tiny stream, raw or prepared, also as 16-bit floats. Its length must be its
    number of samples, because reports count it.
    """
    for scenario in ("task", "class"):
        b = make(scenario)
        training_samples = known_samples(b.stream)
        for index in range(TASKS):
            b.learn(index)
            measure(b.strategy)  # raises an error if `roles` is malformed
            state = b.strategy.state_dict()
            tensors = {**dict(b.strategy.named_parameters()), **dict(b.strategy.named_buffers())}
            for name, tensor in tensors.items():
                is_memory = isinstance(b.strategy, SampleMemory) and name in SAMPLE_BUFFERS and len(tensor)
                has_samples = holds_samples(tensor, training_samples)
                if not is_memory and not has_samples:
                    continue
                location = f"scenario {scenario}, after task {index + 1}: {name} holds training samples"
                if name not in state:
                    raise NonConforming(f"{location}, but it is not persistent, so reports do not count it: "
                                        "leave persistent=False out")
                if role(b.strategy, name) != "replay":
                    raise NonConforming(f"{location}, but its role is {role(b.strategy, name)!r}, so reports say that "
                                        f"no samples are kept: add ({name!r}, 'replay') to the front of roles")
                if has_samples and tensor.numel() != len(tensor) * training_samples.shape[1]:
                    raise NonConforming(f"{location} in the shape {list(tensor.shape)}, which reports count as "
                                        f"{len(tensor)} samples: store a row per sample")


def known_samples(stream: Stream) -> Tensor:
    """Return all training samples of a stream as rows [N, D] in float64: raw, prepared, and rounded to 16 bits."""
    raw = torch.cat([task.train.materialized().x for task in stream.tasks])
    prepared = stream.prepare(raw)
    return torch.cat([x.flatten(1).cpu().double() for x in (raw, prepared, prepared.bfloat16(), prepared.half())])


def holds_samples(tensor: Tensor, known: Tensor) -> bool:
    """Return whether a tensor, reshaped to rows of length D, has a row that equals one of the known samples [N, D]."""
    length = known.shape[1]
    if not tensor.numel() or tensor.numel() % length or tensor.is_complex():
        return False
    rows = tensor.detach().cpu().reshape(-1, length).double()
    return bool((torch.cdist(rows, known, compute_mode="donot_use_mm_for_euclid_dist") == 0).any())


def check_declarations(make: Make) -> None:
    """Check that values that are cached because of a declaration do not change, and that `loss_is_mean` is true."""
    for scenario in ("task", "class"):
        b, cache = make(scenario), PredictionCache(everything=True)
        try:
            for _ in train_tasks(b, [DividedLosses()]):
                predict_all(b, cache)
        except PluginError as error:
            raise NonConforming(str(error)) from None
