"""Options that several commands take: how trials are run, the recipe, and plugins that are files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

EXECUTION = (
    click.option("--data", "data_dir", type=click.Path(path_type=Path), metavar="DIR",
                 help="Where data sets are kept.  [default: CLBENCH_DATA, or the user's cache folder]"),
    click.option("--workers", type=click.IntRange(min=0), help="Processes; 0 runs in this one.  [default: one per "
                 "core, one on an accelerator, as many as a cluster has room for]"),
    click.option("--threads", type=click.IntRange(min=1), help="torch threads per worker.  [default: cores / workers; "
                 "1 on a cluster]"),
    click.option("--stack", type=click.IntRange(min=1), help="Trials of a method (seeds, and values of an option such "
                 "as ewc.strength) that train as one.  [default: 1 on a CPU, as many as fit on an accelerator]"),
    click.option("--executor", type=click.Choice(["local", "ray"]), default="local", help="Where workers run: on this "
                 "machine, or on a Ray cluster, where each takes a CPU for each thread (docs/scaling.md).  "
                 "[default: local]"),
    click.option("--address", metavar="HOST:PORT", help="The Ray cluster.  [default: RAY_ADDRESS, or the one that was "
                 "started on this machine]"),
    click.option("--gpus", type=click.FloatRange(min=0), metavar="N", help="GPUs of the Ray cluster for each worker; "
                 "0.25 lets four share one.  [default: 1 where there are any, unless the device is the CPU]"),
)


def execution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets their values as one argument, `how`: see `experiment.execute`."""
    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        how = {name: given.pop(name)
               for name in ("data_dir", "workers", "threads", "stack", "executor", "address", "gpus")}
        return command(**given, how=how)

    for option in reversed(EXECUTION):
        collected = option(collected)
    return collected


plugin_option = click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Use this Python file's plugin "
                             "without installing it; repeatable.", type=click.Path(path_type=Path))


RECIPE = (
    click.option("--epochs", type=int, help="Passes over each task's training samples.  [default: 10]"),
    click.option("--iterations", type=int, help="Optimiser steps per task, instead of epochs."),
    click.option("--batch-size", type=int, help="New samples per step.  [default: 128]"),
    click.option("--optimizer", metavar="adam|adamw|sgd", help="The optimiser.  [default: adam]"),
    click.option("--lr", type=float, help="Learning rate.  [default: 0.001]"),
    click.option("--momentum", type=float, help="Momentum (sgd).  [default: 0]"),
    click.option("--weight-decay", type=float, help="L2 penalty added to the gradient; of adamw, decoupled from it.  "
                 "[default: 0]"),
    click.option("--schedule", metavar="constant|cosine", help="Learning rate over a task.  [default: constant]"),
    click.option("--warmup-ratio", type=float, help="Share of a task's steps in which the learning rate rises to "
                 "its whole.  [default: 0]"),
    click.option("--max-grad-norm", type=float, help="Norm to which gradients are clipped.  [default: not clipped]"),
    click.option("--optimizer-state", metavar="reset|keep", help="Forget or keep the optimiser's moments when a new "
                 "task begins.  [default: reset]"),
    click.option("--precision", metavar="fp32|tf32|bf16", help="Of the arithmetic.  [default: fp32]"),
    click.option("--device", metavar="DEVICE", help="auto (CUDA or else the CPU), cpu, cuda, cuda:1, mps.  "
                 "[default: auto]"),
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a recipe, and the device."""
    for option in reversed(RECIPE):
        command = option(command)
    return command
