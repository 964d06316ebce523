"""`clbench pretrain`: make a base of a benchmark's held-out classes, or of all of its classes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from clbench.cli.common_options import execution_option, model_option, recipe_options
from clbench.cli.completion import named
from clbench.cli.help import Command

EXAMPLES = (
    ("clbench pretrain split-cifar100:held_out=50 --model resnet20 --out base.safetensors", ""),
    ("clbench run --benchmark split-cifar100:held_out=50 --model resnet20 --weights base.safetensors "
     "--methods lora,ewc", ""),
)
COMMON = ("model", "weights", "epochs", "iterations", "batch_size", "optimizer", "lr", "device", "seed", "data", "out")


@click.command("pretrain", cls=Command, examples=EXAMPLES, common=COMMON)
@click.argument("benchmark", metavar="BENCHMARK", shell_complete=named("benchmark", "benchmarks"))
@model_option("Model, as in resnet20 (clbench models).  [default: mlp]")
@click.option("--weights", metavar="FILE", help="Weights to start from.")
@recipe_options
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of initialization and data order.")
@execution_option("data")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.safetensors",
              help="File that the weights are written to.")
def command(benchmark: str, seed: int, out: Path, **flags: Any) -> None:
    """Train a model on the classes that a stream leaves out, and save its weights for `clbench run --weights`.

    If the benchmark leaves no classes out, the model is trained on all tasks at once.
    """
    from clbench.core.errors import SpecError
    from clbench.core.options import format_value, parse_named
    from clbench.core.registry import discover
    from clbench.experiment.overrides import read_spec
    from clbench.experiment.plan import plan

    if out.suffix != ".safetensors":
        raise SpecError(f"--out {out}: weights are kept as safetensors; give it a name that ends in .safetensors")
    registry = discover()
    name, options = parse_named(benchmark)
    if options.get("held_out"):
        options = {**options, "part": "held-out", "tasks": 1}
    text = ":".join([name, *(f"{k}={format_value(v)}" for k, v in options.items())])
    device = flags.pop("device") or "auto"
    spec = read_spec(None, {"methods": registry.baseline.name, "seeds": [seed], "scenario": "class"},
                     {**flags, "benchmark": text}, ())
    trial = plan(spec, registry)[0].trial
    from clbench.execution.pretraining import pretrain

    began = time.monotonic()
    click.echo(f"training {trial.model.name} on {text}", err=True)
    done = pretrain(trial, out, spec.execution, device, registry)
    click.echo(f"{done.classes} classes, {done.samples:,} images, {done.steps:,} steps in "
               f"{time.monotonic() - began:.0f} s; accuracy on their test images {100 * done.accuracy:.2f} %\n"
               f"weights: {out}")
