"""`clbench embed`: store a frozen network's features of a benchmark, so that heads can be compared on them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from clbench.cli.common_options import FILE, device_option, execution_option, model_option, plugin_option
from clbench.cli.completion import complete_names
from clbench.cli.help import Command

HEADS = "ncm,slda,ranpac,er,ewc,naive,joint"  # methods in the suggested next command


EXAMPLES = (
    ("clbench embed split-cifar100 --model torchvision:resnet18 --weights DEFAULT --out cifar.safetensors",
     "computes the features once"),
    ("clbench run --benchmark arrays:cifar.safetensors --model linear --methods ncm,slda,ranpac,er",
     "compares methods that train a classifier on them"),
)


@click.command("embed", cls=Command, examples=EXAMPLES)
@click.argument("benchmark", metavar="BENCHMARK", shell_complete=complete_names("benchmark", "benchmarks"))
@model_option("Model, as in timm:vit_small_patch14_dinov2:size=56 (clbench models).", required=True)
@click.option("--weights", metavar="FILE|NAME", help="Pretrained weights of the model, as for clbench run.  "
              "[default: none, the network is untrained]")
@click.option("--out", type=FILE, required=True,
              metavar="FILE.safetensors|FILE.npz", help="File to write the features to.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of untrained weights, and "
              "of benchmarks that depend on the seed.")
@click.option("--batch-size", "batch", type=click.IntRange(min=1), help="Number of samples per batch.  [default: "
              "chosen for the device]")
@click.option("--precision", metavar="fp32|tf32|bf16", help="Numerical precision.  [default: fp32]")
@device_option("auto")
@execution_option("data")
@plugin_option
def command(benchmark: str, model: str, out: Path, seed: int, batch: int | None, device: str | None,
            plugins: tuple[Path, ...], **flags: Any) -> int:
    """Compute the features of a frozen network for all samples of a benchmark, and write them to a file.

    Methods can then train classifiers on the features (--benchmark arrays:FILE), which is much faster than training
    with the network. The file contains the arrays X_train (features, float32), y_train (labels) and task_train (tasks),
    and the same arrays for the test samples. If samples have groups, group_train has those of the training samples, so
    that a validation split keeps them whole. If the command is interrupted, run it again to continue.
    """
    from rich.console import Console

    from clbench.core.registry import discover
    from clbench.data.contents import check_data
    from clbench.data.feature_file import check_suffix
    from clbench.execution.embedding import EmbeddingProgress
    from clbench.experiment.overrides import read_spec
    from clbench.experiment.plan import plan

    check_suffix(out)
    registry = discover(files=plugins)
    spec = read_spec(None, {"methods": registry.baseline.name, "seeds": [seed]},
                     {**flags, "benchmark": benchmark, "model": model}, ())
    trial = plan(spec, registry)[0].trial
    check_data(trial.benchmark, spec.execution.data_dir, registry)
    from clbench.execution.embedding import embed, prepare
    from clbench.report.formatting import plural

    job = prepare(trial, spec.execution, device or "auto", registry, batch)
    for note in job.notes:
        click.echo(note, err=True)
    click.echo(f"{trial.benchmark.name}: {plural(len(job.stream.tasks), 'task')}, {job.count('train'):,} training and "
               f"{job.count('test'):,} test samples; {trial.model.name} on {job.device}, batches of {job.batch}",
               err=True)
    try:
        with EmbeddingProgress(Console(stderr=True, highlight=False), job.samples_in_all) as progress:
            result = embed(job, out, progress)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {out}.parts has what is done. Run the same command again to continue", err=True)
        return 130
    pace = f", {result.computed / result.seconds:,.0f} a second" if result.computed else ""
    reused = f", {result.reused:,} more from before" if result.reused else ""
    scenario = " --scenario domain" if trial.scenario == "domain" else ""  # the default for arrays is task
    click.echo(f"{result.computed:,} samples in {result.seconds:.1f} s{pace}{reused}\n"
               f"features: {out} ({job.width} of each sample, {out.stat().st_size / 1e6:.1f} MB)\n"
               f"next:     clbench run --benchmark {shlex.quote(f'arrays:{out}')} --model linear --methods {HEADS}"
               f"{scenario}")
    return 0
