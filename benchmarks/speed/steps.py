"""Compare a training step of clbench with a hand-written one, in alternating blocks of steps in one process.

`python benchmarks/speed/steps.py --data DIR` takes a minute: naive, mlp, split-mnist, SGD, batches of 128 and 16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import Setting
from torch import Tensor
from work import model_of, optimizer_of, spec_of

from clbench.core.registry import discover
from clbench.data import default_data_dir
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.training import phase_cache
from clbench.training.sampling import BatchSampler
from clbench.training.steps import make_train_step, take_step

BLOCKS, STEPS = 60, 25


def setting_of(model: str, batch_size: int, threads: int, data: Path) -> Setting:
    """Return the setting that both loops use."""
    return Setting(benchmark="split-mnist", data_dir=str(data), epochs=1, lr=0.05, optimizer="sgd", threads=threads,
                   device="cpu", model=model, method="naive", batch_size=batch_size, contender="clbench", seeds=(0,))


def loops(setting: Setting) -> dict[str, Callable[[], None]]:
    """Return a hand-written step and a step of clbench's loop, on the first task, from the same weights."""
    registry = discover()
    planned = plan(spec_of(setting), registry)[0]
    runner = TrialRunner(ExecutionSettings(data=Path(setting.data_dir)), setting.device, "benchmarks/speed", registry)
    member = runner._replica(planned)
    task = member.begin(0)
    member.strategy.train()
    samples = phase_cache.phase_inputs([member.strategy], [task.train], 0, len(task.train)).samples[0]
    order = BatchSampler(len(samples), setting.batch_size, seed=0, task=0)
    train_step = make_train_step([member.strategy], planned.trial.recipe, None)
    model, losses = model_of(setting), list[Tensor]()
    optimizer = optimizer_of(setting, model)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for index in torch.randperm(len(samples)).split(setting.batch_size):
                yield samples.x[index], samples.y[index]

    drawn = batches()

    def by_hand() -> None:
        x, y = next(drawn)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"by hand": by_hand, "clbench": lambda: losses.append(take_step(train_step, [order.next_batch(samples)]))}


def main() -> None:
    """Print the milliseconds per step, as medians over blocks, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=default_data_dir(), help="folder of data sets")
    parser.add_argument("--model", default="mlp", help="of clbench's models of inputs like MNIST's")
    found = parser.parse_args()
    for batch_size in (128, 16):
        for threads in (2, 1):
            torch.set_num_threads(threads)
            steps = loops(setting_of(found.model, batch_size, threads, found.data))
            took: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(BLOCKS):
                for name, step in steps.items():
                    began = time.perf_counter()
                    for _ in range(STEPS):
                        step()
                    took[name].append(1e3 * (time.perf_counter() - began) / STEPS)
            hand, ours = (statistics.median(took[name]) for name in ("by hand", "clbench"))
            print(f"batch {batch_size}, {threads} thread(s): by hand {hand:.3f} ms, clbench {ours:.3f} ms a step; "
                  f"clbench's speed is {hand / ours:.3f} of the hand-written loop's", flush=True)


if __name__ == "__main__":
    main()
