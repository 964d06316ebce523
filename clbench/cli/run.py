"""`clbench run`: run an experiment, show its table, keep its records."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import (
    arrival_options,
    methods_option,
    model_option,
    plugin_option,
    recipe_options,
    stale_options,
)
from clbench.cli.completion import named
from clbench.cli.execution_options import execution_options
from clbench.cli.help import Command
from clbench.core.scenario import SCENARIOS

if TYPE_CHECKING:
    from clbench.execution.reuse import OnStale
    from clbench.execution.run import Experiment

FOLDER = click.Path(path_type=Path)


EXAMPLES = (
    ("clbench run --methods lora,ewc", "the first comparison: offline, no GPU, under a minute"),
    ("clbench run --methods er:capacity=500,ewc,joint --scenario class --seeds 5",
     "methods with options, without task ids"),
    ("clbench run --methods lora --set lora.rank=1,4,16", "a row for each value"),
    ("clbench run --benchmark images:photos:tasks=3 --methods naive,er,joint", "your own data"),
    ("clbench run benchmarks/split_mnist.toml --out runs/mine", "an experiment from a file"),
)


@click.command("run", cls=Command, examples=EXAMPLES)
@click.argument("spec", required=False, metavar="[SPEC.toml]", type=FOLDER)
@methods_option("Methods, as in lora:rank=4,ewc; repeatable. With a file, a name, a label or a name with options picks "
                "the file's methods that are called so, with their recipes.")
@click.option("--benchmark", metavar="NAME", shell_complete=named("benchmark", "benchmarks"),
              help="A benchmark (clbench benchmarks), or a function returning an Avalanche benchmark: "
              "package.module:function or path/to/file.py:function.  [default: split-mnist-5k]")
@click.option("--scenario", metavar="LIST", help=f"What the test gives away: {', '.join(SCENARIOS)}.  "
              "[default: the benchmark's first]")
@model_option("A model, as in mlp:width=100 (clbench models).  [default: mlp]")
@click.option("--weights", metavar="FILE", help="Start the model from these weights: safetensors, a torch state dict, "
              "or torchvision's name for them, such as IMAGENET1K_V1.  [default: none]")
@click.option("--seeds", metavar="N|LIST", help="A number of seeds (3 is 0,1,2) or a list such as 0,4.  [default: 3]")
@click.option("--until", metavar="decided", help="Add seeds after the first ones where the question is open, one by "
              "one, by tests that hold although one looks after each (docs/choosing.md).")
@click.option("--max-seeds", type=int, metavar="N", help="The most of a method, with --until decided.  [default: 30]")
@click.option("--baseline", metavar="METHOD", help="The question of --until decided: each method against this one, by "
              "its label, or which is the best of all (best).  [default: naive if it is among them, else best]")
@click.option("--validation", type=float, metavar="SHARE", help="Hold out this share of the training samples and "
              "evaluate on them; the test set is not used (docs/tuning.md).  [default: 0]")
@arrival_options
@recipe_options
@click.option("--set", "options", multiple=True, metavar="METHOD.OPTION=VALUE",
              help="An option of every method of that name or label; repeatable. Several values, as in "
              "lora.rank=1,2,4, make a row each, several such options every combination.")
@click.option("--out", type=FOLDER, metavar="DIR",
              help="The run folder.  [default: runs/<name of the file or benchmark>]")
@execution_options()
@click.option("--shard", metavar="I/N", help="Run the I-th of N parts of the experiment, as in 2/8: one for each job "
              "of an array.  [default: all]")
@click.option("--log", default="", metavar="LIST", help="Show the records to trackers (clbench trackers), as in "
              "tensorboard,wandb:project=mine.  [default: none]")
@plugin_option
@stale_options
@click.option("--dry-run", is_flag=True, help="List the trials, the state of each, and what it will "
              "train and compute; run nothing and write no records.")
def command(spec: Path | None, options: tuple[str, ...], out: Path | None, shard: str | None, log: str,
            plugins: tuple[Path, ...], stale: OnStale, dry_run: bool, **flags: Any) -> int:
    """Run an experiment: every combination of methods, scenarios and seeds.

    What the run folder already holds is not run again; trials that failed are. Results of other code or data than there
    are now are listed first, and nothing is trained.
    """
    from clbench.core.errors import SpecError
    from clbench.core.registry import discover
    from clbench.execution import run
    from clbench.experiment.display_names import as_ids
    from clbench.experiment.overrides import read_spec

    if spec is None and flags["methods"] is None:
        line, meaning = EXAMPLES[0]
        raise SpecError("which methods? Pass them as in --methods lora,ewc, or name a file\n"
                        f"{line}    {meaning}")
    registry = discover(files=plugins)
    if spec is not None and not spec.exists() and str(spec) in registry.strategies:
        raise SpecError(f"no experiment file {spec}; {str(spec)!r} is a method: give all methods as one list, as in "
                        f"--methods {','.join(filter(None, [flags['methods'], str(spec)]))}")
    if flags["methods"] is not None:
        flags["methods"] = as_ids(flags["methods"], registry)
    found = read_spec(spec, {}, flags, options)
    ready = run.prepare(found, registry, out or run.default_out(found, spec), log, shard, stale,
                        note)
    ended = run_missing(ready, dry_run)
    return conclude(ready) if ended is None else ended


def note(text: str) -> None:
    """Say what takes long before there is a display of trials."""
    click.echo(text, err=True)


def run_missing(ready: Experiment, dry_run: bool) -> int | None:
    """Run the missing trials; return an exit code if the command should stop (dry run, interrupt), else None.

    Args:
        ready: the experiment.
        dry_run: whether to only list the trials.
    """
    from rich.console import Console

    from clbench.execution.progress import display
    from clbench.execution.until import carry_out

    for problem in ready.problems:
        click.echo(f"Warning: {problem}", err=True)
    if dry_run:
        from clbench.cli.forecasts import listing

        click.echo(listing(ready))
        if ready.most:
            click.echo(f"these first; then, until decided, a seed at a time, {ready.most} trials at most")
        return 0
    ready.refuse_stale()
    try:
        carry_out(ready, lambda now: display(Console(stderr=True, highlight=False), now.missing),
                  shlex.join(["clbench", *sys.argv[1:]]))
    except KeyboardInterrupt:
        kept = len(ready.planned) - len(ready.missing)
        click.echo(f"interrupted: {kept} of {len(ready.planned)} trials are done and kept in {ready.store.directory}; "
                   "the same command goes on from here", err=True)
        return 130
    return None


def conclude(ready: Experiment) -> int:
    """Write the report, print the table and the paths, and return the exit code."""
    from clbench import report
    from clbench.execution.progress import plural
    from clbench.execution.run import write_report
    from clbench.report.formats.terminal import show

    results = ready.results()
    paths = write_report(ready)
    show(report.build(results, registry=ready.registry))
    for path in paths:
        click.echo(f"report:  {path}")
    click.echo(f"records: {ready.store.records}")
    bad = [(status, sum(r.status == status for r in results)) for status in ("failed", "diverged")]
    if any(count for _, count in bad):
        click.echo(", ".join(f"{plural(count, 'trial')} {status}" for status, count in bad if count), err=True)
        return 1
    return 0
