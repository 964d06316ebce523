"""Stock Avalanche: its own stream, loaders, strategies and default evaluation, as its tutorials use them."""

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

# Replay adds a full batch of memory to the few samples that end a pass. This last step, nearly all of it old classes,
# alone is worth five points of final accuracy; clbench replays as many samples as are new.
DEVIATION: dict[str, dict[str, Any]] = {"er": {"drop_last": True}}


def benchmark_of(setting: Setting) -> Any:
    """Return the stream: Avalanche's SplitMNIST for all of MNIST, else the same cut of other images.

    Avalanche's own SplitCIFAR100 looks for its files on the network, and would add random crops and flips.
    """
    facts = STREAMS[setting.benchmark]
    if setting.benchmark == "split-mnist":
        return SplitMNIST(facts.tasks, fixed_class_order=list(range(facts.classes)), shuffle=False,
                          dataset_root=setting.data_dir)
    return cut(images_of(setting), facts.tasks, setting.benchmark)


def cut(images: Sequence[Images], tasks: int, benchmark: str) -> Any:
    """Return a stream of training and test images by class, transformed as Avalanche does by default."""
    transform = to_input(benchmark)
    return nc_benchmark(*map(Pictures, images), tasks, task_labels=False, shuffle=False,
                        fixed_class_order=list(range(STREAMS[benchmark].classes)), train_transform=transform,
                        eval_transform=transform)


def strategy_of(setting: Setting) -> Any:
    """Return the strategy with a model of its own."""
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
    """Train on each experience and evaluate on the whole test stream before, between and after; return R."""
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
    # Enough for two experiences with full batches, and for each class to be there.
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
    replayed = sum(lengths[1:]) * setting.epochs  # from the second experience on, a full batch with each batch
    return asdict(Outcome(
        train=clock.seconds["train and consolidate"] - consolidate, consolidate=consolidate,
        evaluate=clock.seconds["evaluate"], whole=whole, ready_after=ready, train_samples=samples,
        processed=samples + (replayed if setting.method == "er" else 0), test_samples=tests, final=[final],
        learned=[learned], peak_bytes=peak_bytes(), device_bytes=device_bytes(setting.device)))


def shuffled(setting: Setting) -> list[Images]:
    """Return training and test images in an order in which the first few have all classes."""
    parts = []
    for part in images_of(setting):
        order = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(0))
        parts.append(Images(part.x[order], part.y[order]))
    return parts
