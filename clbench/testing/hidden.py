"""Check that hidden ends of tasks do not reach a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.testing.tiny import RECIPE, SAMPLES, TASKS, Make, NonConforming, tiny_stream
from clbench.training.evaluation import evaluate
from clbench.training.sampling import StreamSampler
from clbench.training.stream_loop import StreamLoop

SIZES = ((SAMPLES,) * TASKS, (44, 28), (3, 58, 11))  # of tasks in streams of the same samples; batches have 8


def check_task_free(make: Make) -> None:
    """Check that a method which is declared `task_free` learns the same whatever the hidden boundaries are.

    Streams have the same samples in the same order and are evaluated at other boundaries, after other numbers of steps.
    With options that need boundaries (`Options.needs_boundaries`) there is nothing to check.
    """
    for scenario in ("class", "domain"):
        first = make(scenario)
        if not first.task_free or first.strategy.options.needs_boundaries:
            return
        outcomes = [learned(make, scenario, divided(tiny_stream(scenario), sizes, first.seed)) for sizes in SIZES]
        for sizes, (state, draws) in zip(SIZES[1:], outcomes[1:], strict=True):
            known, drawn = outcomes[0]
            where = f"scenario {scenario}, hidden boundaries after {list(accumulate(sizes))} samples instead of " \
                    f"{list(accumulate(SIZES[0]))}"
            if state.keys() != known.keys():
                raise NonConforming(f"{where}: it keeps other tensors, {sorted(state.keys() ^ known.keys())}")
            for name, tensor in known.items():
                if not torch.equal(tensor, state[name]):
                    raise NonConforming(f"{where}: {name} is another, so it knows where tasks end")
            if not torch.equal(draws, drawn):
                raise NonConforming(f"{where}: it draws other random numbers, so it knows where tasks end")


def divided(stream: Stream, sizes: Sequence[int], seed: int) -> Stream:
    """Return a stream with hidden boundaries whose samples pass in the same order as in `stream`, in other tasks."""
    order = StreamSampler([task.train for task in stream.tasks], 1, seed)
    passing = Samples.concat(*(task.train.take(rows) for task, rows in zip(stream.tasks, order.rows, strict=True)))
    tasks = []
    for index, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        rows = torch.arange(end - size, end)
        shuffled = torch.randperm(size, generator=seeds.generator(seed, "data", index))  # which the harness will do
        tasks.append(replace(stream.tasks[index], train=passing.take(rows[shuffled.argsort()])))
    return replace(stream, tasks=tuple(tasks), hidden=True)


def learned(make: Make, scenario: str, stream: Stream) -> tuple[dict[str, Tensor], Tensor]:
    """Return the state in which a stream leaves a strategy, and that of its generator."""
    b = make(scenario, stream=stream)
    loop = StreamLoop([b.replica], RECIPE.model_copy(update={"epochs": 1}))
    for index in range(len(stream.tasks)):
        loop.train_task(index)
        evaluate(b.strategy, stream, b.scenario, index + 1)
    active = {"active": b.strategy.active}  # which is no memory, and not kept
    return {**b.strategy.state_dict(), **active}, b.strategy.world.generator.get_state()
