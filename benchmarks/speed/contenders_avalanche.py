"""Stock Avalanche: its stream, loaders, strategies and default evaluation, as in its tutorials."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.classic import SplitMNIST
from avalanche.training.supervised import EWC, Naive, Replay
from measure import Outcome, Setting
from torch.nn import CrossEntropyLoss
from work import (
    EVAL_BATCH,
    EWC_LAMBDA,
    MEMORY,
    STREAMS,
    Clock,
    Pictures,
    device_bytes,
    images_of,
    model_of,
    optimizer_of,
    peak_bytes,
    summary,
    to_input,
)

from clbench.data.datasets import Images

# Avalanche's replay adds a full batch from the buffer even to a small last batch of an epoch. This last step, which is
# nearly all old classes, adds five points of final accuracy. clbench replays as many samples as there are new ones.
DEVIATION: dict[str, dict[str, Any]] = {"er": {"drop_last": True}}


def benchmark_of(setting: Setting) -> Any:
    """Return the stream: Avalanche's SplitMNIST for all of MNIST, else the same split of other images.

    Avalanche's SplitCIFAR100 is not used because it downloads its files and adds random crops and flips.
    """
    facts = STREAMS[setting.benchmark]
    if setting.benchmark == "split-mnist":
        return SplitMNIST(facts.tasks, fixed_class_order=list(range(facts.classes)), shuffle=False,
                          dataset_root=setting.data_dir)
    return cut(images_of(setting), facts.tasks, setting.benchmark)


def cut(images: Sequence[Images], tasks: int, benchmark: str) -> Any:
    """Return a stream of training and test images split by class, with Avalanche's default transform."""
    transform = to_input(benchmark)
    return nc_benchmark(*map(Pictures, images), tasks, task_labels=False, shuffle=False,
                        fixed_class_order=list(range(STREAMS[benchmark].classes)), train_transform=transform,
                        eval_transform=transform)


def strategy_of(setting: Setting) -> Any:
    """Return the strategy with a new model."""
    model = model_of(setting)
    common: dict[str, Any] = dict(
        model=model, optimizer=optimizer_of(setting, model), criterion=CrossEntropyLoss(),
        train_mb_size=setting.batch_size, train_epochs=setting.epochs, eval_mb_size=EVAL_BATCH, device=setting.device)
    if setting.method == "ewc":
        return EWC(ewc_lambda=EWC_LAMBDA, **common)
    if setting.method == "er":
        return Replay(mem_size=MEMORY, **common)
    return Naive(**common)


def live(strategy: Any, benchmark: Any, clock: Clock, method: str) -> list[list[float]]:
    """Train on each experience, evaluate on the whole test stream before the first and after each, and return R."""
    for plugin in strategy.plugins:
        if type(plugin).__name__ in ("EWCPlugin", "ReplayPlugin"):
            plugin.after_training_exp = clock.timed("consolidate", plugin.after_training_exp)
    evaluate = clock.timed("evaluate", strategy.eval)
    rows = [evaluate(benchmark.test_stream)]
    for experience in benchmark.train_stream:
        with clock.phase("train and consolidate"):
            strategy.train(experience, **DEVIATION.get(method, {}))
        rows.append(evaluate(benchmark.test_stream))
    return [[row[f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{task:03d}"]
             for task in range(len(benchmark.test_stream))] for row in rows]


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Measure one trial."""
    setting = Setting(**{**request, "seeds": tuple(request["seeds"])})
    device = torch.device(setting.device)
    # Enough for two experiences with full batches, and for samples of each class.
    count = max(4 * EVAL_BATCH, 4 * setting.batch_size, 20 * STREAMS[setting.benchmark].classes)
    few = [Images(part.x[:count], part.y[:count]) for part in shuffled(setting)]
    live(strategy_of(setting), cut(few, 2, setting.benchmark), Clock(device), setting.method)  # warm-up
    benchmark, strategy = benchmark_of(setting), strategy_of(setting)
    torch.manual_seed(setting.seeds[0])
    ready = time.time() - started
    clock = Clock(device)
    matrix = live(strategy, benchmark, clock, setting.method)
    whole = clock.whole()
    final, learned = summary(matrix)
    lengths = [len(e.dataset) for e in benchmark.train_stream]
    consolidate = clock.seconds.get("consolidate", 0.0)
    tests = sum(len(e.dataset) for e in benchmark.test_stream) * len(matrix)
    if setting.method == "er":
        lengths = [n - n % setting.batch_size for n in lengths]
    samples = sum(lengths) * setting.epochs
    replayed = sum(lengths[1:]) * setting.epochs  # each batch after the first experience gets a full replay batch
    return asdict(Outcome(
        train=clock.seconds["train and consolidate"] - consolidate, consolidate=consolidate,
        evaluate=clock.seconds["evaluate"], whole=whole, ready_after=ready, train_samples=samples,
        processed=samples + (replayed if setting.method == "er" else 0), test_samples=tests, final=[final],
        learned=[learned], peak_bytes=peak_bytes(), device_bytes=device_bytes(setting.device)))


def shuffled(setting: Setting) -> list[Images]:
    """Return training and test images in random order, so that the first few images include all classes."""
    parts = []
    for part in images_of(setting):
        order = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(0))
        parts.append(Images(part.x[order], part.y[order]))
    return parts
