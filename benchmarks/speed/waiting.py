"""Measure with torch.profiler how long the device waits for Python: the share of a step in which it computes.

`python benchmarks/speed/waiting.py --device cuda` prints results for stacks of 1, 8 and 32 seeds: milliseconds per step
and the share of the step in which a kernel runs (on a CPU: an operator). The remaining time is Python. `--trace DIR`
writes the traces, which Perfetto can open.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from steps import setting_of
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from work import spec_of

from clbench.core.device import synchronize
from clbench.core.registry import discover
from clbench.data import default_data_dir
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.training import phase_cache
from clbench.training.sampling import BatchSampler
from clbench.training.steps import make_train_step, take_step

STEPS = 50


def step_of(method: str, model: str, seeds: int, batch_size: int, data: Path, device: str) -> Callable[[], None]:
    """Return a function that takes a step of clbench's loop for a stack of seeds, on the first task."""
    registry = discover()
    setting = replace(setting_of(model, batch_size, torch.get_num_threads(), data), method=method, device=device,
                      seeds=tuple(range(seeds)))
    planned = plan(spec_of(setting), registry)
    runner = TrialRunner(ExecutionSettings(data=data), device, "benchmarks/speed", registry)
    members = [runner._replica(one) for one in planned]
    tasks = [member.begin(0) for member in members]
    for member in members:
        member.strategy.train()
    strategies = [member.strategy for member in members]
    given = phase_cache.phase_inputs(strategies, [task.train for task in tasks], 0, len(tasks[0].train))
    orders = [BatchSampler(len(task.train), batch_size, seed, 0) for seed, task in enumerate(tasks)]
    train_step = make_train_step(strategies, planned[0].trial.recipe, None)
    losses: list[torch.Tensor] = []

    def step() -> None:
        batches = [order.next_batch(part) if given.prepared else order.next_prepared(strategy, part)
                   for strategy, order, part in zip(strategies, orders, given.samples, strict=True)]
        losses.append(take_step(train_step, batches))

    return step


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def measured(step: Callable[[], None], device: torch.device, trace: Path | None) -> tuple[float, float]:
    """Return milliseconds per step without the profiler, and the share of it in which the device computes."""
    for _ in range(STEPS):
        step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    synchronize(device)
    wall = 1e3 * (time.perf_counter() - began) / STEPS
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as found:
        for _ in range(STEPS):
            step()
        synchronize(device)
    if trace is not None:
        found.export_chrome_trace(str(trace))
    if device.type == "cuda":
        # The profiler slows Python but not the kernels.
        spans = [(e.time_range.start, e.time_range.end) for e in found.events() if e.device_type == DeviceType.CUDA]
        return wall, covered(spans) / 1e3 / STEPS / wall
    spans = [(e.time_range.start, e.time_range.end) for e in found.events() if e.name.startswith("aten::")]
    whole = [t for e in found.events() for t in (e.time_range.start, e.time_range.end)]
    return wall, covered(spans) / (max(whole) - min(whole))


def main() -> None:
    """Print a line for each size of the stack."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, default=default_data_dir(), help="folder of data sets")
    add("--device", default="cpu", help="cpu or cuda")
    add("--method", default="naive", help="naive, ewc or er")
    add("--model", default="mlp", help="mlp or cnn")
    add("--batch-size", type=int, default=128)
    add("--stacks", type=int, nargs="+", default=[1, 8, 32], help="numbers of seeds")
    add("--trace", type=Path, help="folder for the traces")
    found = parser.parse_args()
    if found.trace:
        found.trace.mkdir(parents=True, exist_ok=True)
    for seeds in found.stacks:
        step = step_of(found.method, found.model, seeds, found.batch_size, found.data, found.device)
        trace = found.trace and found.trace / f"{found.method}-{found.model}-{seeds}.json"
        wall, share = measured(step, torch.device(found.device), trace)
        print(f"{found.method}, {found.model}, batch {found.batch_size}, {seeds} seed(s): {wall:.2f} ms a step, "
              f"computing {share:.0%} of it", flush=True)


if __name__ == "__main__":
    main()
