"""`clbench pretrain`: train a model on all tasks of a benchmark together, and save its weights."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from clbench.cli.common_options import FILE, execution_option, model_option, plugin_option, recipe_options
from clbench.cli.completion import complete_names
from clbench.cli.help import Command
from clbench.core.artifacts import save_tensors
from clbench.core.errors import ClbenchError, SpecError, StoreError
from clbench.core.files import make_folder
from clbench.core.objective import CLASSIFICATION
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.data.samples import Samples
from clbench.data.stream import read_benchmark
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Resolved, Trial
from clbench.training import precision
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica

ANOTHER_FILE = "choose another file with --out"


@dataclass(frozen=True)
class Pretrained:
    """The extent of the pretraining, and the accuracy on test samples of the same classes."""

    classes: int
    samples: int
    steps: int
    accuracy: float


def pretrain(trial: Trial, out: Path, settings: ExecutionSettings, device: str, registry: Registry) -> Pretrained:
    """Train a trial's model on all classes of its benchmark together and save its weights as safetensors.

    Tasks with the same classes share their outputs; the trial's own scenario is not used. The head is not saved,
    because a stream that starts from these weights has other classes.

    Raises:
        ClbenchError: the data are missing, the model does not fit them, training diverged, or `out` cannot be written;
            nothing is written then.
    """
    make_folder(out.parent, ANOTHER_FILE)
    first, *others = map(set, read_benchmark(trial.benchmark, trial.seed, settings.data_dir, registry).orders)
    scenario: Scenario = "domain" if others and all(classes == first for classes in others) else "class"
    trial = trial.model_copy(update={"scenario": scenario})
    runner = TrialRunner(settings, device, "clbench pretrain", registry)
    stream = runner.stream(trial)
    strategy, _ = runner.build(trial, stream)
    if not strategy.model.has_body:
        raise SpecError(f"model {trial.model} is a head alone: nothing before it could be kept; choose another")
    tasks = stream.tasks
    samples = Samples.concat(*(task.train for task in tasks)) if len(tasks) > 1 else tasks[0].train
    samples = samples.of_one_task()
    joint_stream = replace(stream, tasks=(replace(tasks[0], classes=tuple(range(stream.classes)), train=samples,
                                                  class_names=(), train_classes=()),))
    loop = TrainingLoop([Replica(strategy, joint_stream, trial.seed)], trial.recipe, cache_bytes=settings.cache_bytes)
    with precision.allow_tf32(trial.recipe):
        trained, = loop.train_task(0)
        if trained.diverged is not None:
            raise ClbenchError(f"{trained.diverged}; choose a smaller learning rate")
        with precision.autocast_context(trial.recipe, strategy.class_mask.device, strategy):
            row = evaluate(strategy, stream, scenario, len(tasks))
    sizes = [len(task.test) for task in tasks]
    accuracy = sum(a * n for a, n in zip(row.accuracy, sizes, strict=True)) / sum(sizes)
    body = {strategy.model.published_name(n): t for n, t in strategy.model.state_dict().items()
            if not n.startswith("head.")}
    try:
        save_tensors(out, body, {"benchmark": str(trial.benchmark), "model": str(trial.model), "seed": str(trial.seed),
                                 "recipe": trial.recipe.model_dump_json(), "accuracy": f"{accuracy:.4f}"})
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}; {ANOTHER_FILE}") from error
    return Pretrained(stream.classes, len(samples), trained.steps, accuracy)


EXAMPLES = (
    ("clbench pretrain split-cifar100:held_out=50 --model resnet20 --out base.safetensors",
     "trains on the 50 classes that the benchmark holds out"),
    ("clbench run --benchmark split-cifar100:held_out=50 --model resnet20 --weights base.safetensors "
     "--methods lora,ewc", "starts both methods from these weights"),
)
COMMON = ("model", "weights", "epochs", "iterations", "batch_size", "optimizer", "lr", "device", "seed", "data", "out")


@click.command("pretrain", cls=Command, examples=EXAMPLES, common=COMMON)
@click.argument("benchmark", metavar="BENCHMARK", shell_complete=complete_names("benchmark", "benchmarks"))
@model_option("Model, as in resnet20 (clbench models).  [default: mlp]")
@click.option("--weights", metavar="FILE", help="Pretrained weights to start from, as for clbench run.")
@recipe_options
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the initial weights and the data "
              "order.")
@execution_option("data")
@click.option("--out", type=FILE, required=True, metavar="FILE.safetensors",
              help="File to write the weights to.")
@plugin_option
def command(benchmark: str, seed: int, out: Path, plugins: tuple[Path, ...], **flags: Any) -> None:
    """Pretrain a model on a benchmark, and save its weights to a file.

    `clbench run --weights FILE` then starts from them. clbench trains on the classes that the benchmark holds out from
    its tasks (option held_out). If it holds out none, clbench trains on all tasks together. The weights of the head are
    not saved.
    """
    from clbench.core.options import parse_named, validate
    from clbench.core.registry import discover
    from clbench.experiment.overrides import read_spec
    from clbench.experiment.plan import plan

    if out.suffix != ".safetensors":
        raise SpecError(f"--out {out}: weights are kept as safetensors; give it a name that ends in .safetensors")
    registry = discover(files=plugins)
    name, options = parse_named(benchmark)
    info = registry.benchmark(name)
    if info.objective_with(validate(info.options, options, name, "clbench benchmarks")) != CLASSIFICATION:
        raise SpecError(f"benchmark {name!r} has no classes, and clbench pretrain trains classifiers only; choose "
                        "another benchmark")
    if options.get("held_out") and "part" in info.options.model_fields:  # elsewhere it is a share of test samples
        options = {k: v for k, v in options.items() if k != "task_sizes"} | {"part": "held-out", "tasks": 1}
    text = str(Resolved(name=name, options=options))
    device = flags.pop("device") or "auto"
    spec = read_spec(None, {"methods": registry.baseline.name, "seeds": [seed], "scenario": info.scenarios[0]},
                     {**flags, "benchmark": text}, ())
    trial = plan(spec, registry)[0].trial

    start_time = time.monotonic()
    click.echo(f"training {trial.model.name} on {text}", err=True)
    result = pretrain(trial, out, spec.execution, device, registry)
    click.echo(f"{result.classes} classes, {result.samples:,} samples, {result.steps:,} steps in "
               f"{time.monotonic() - start_time:.0f} s; accuracy on their test samples {100 * result.accuracy:.2f} %\n"
               f"weights: {out}")
