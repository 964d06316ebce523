"""`clbench run`: run an experiment, show its table and store its records."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import (
    PATH,
    arrival_options,
    execution_options,
    methods_option,
    model_option,
    plugin_option,
    recipe_options,
    stale_options,
    typed_command,
)
from clbench.cli.completion import complete_names
from clbench.cli.help import Command
from clbench.core.scenario import SCENARIOS

if TYPE_CHECKING:
    from clbench.execution.reuse import OnStale
    from clbench.execution.run import Experiment
    from clbench.execution.workers.plan import Listener


EXAMPLES = (
    ("clbench run --methods lora,ewc", "the first comparison: offline, no GPU, about a minute"),
    ("clbench run --methods er:capacity=500,ewc,joint --scenario class --seeds 5",
     "methods with options, without task IDs at test time"),
    ("clbench run --methods lora --set lora.rank=1,4,16", "a row for each value"),
    ("clbench run --benchmark images:photos:tasks=3 --methods naive,er,joint", "your own data"),
    ("clbench run benchmarks/split_mnist.toml --out runs/mine", "an experiment from a file"),
)
COMMON = ("methods", "benchmark", "scenario", "model", "weights", "seeds", "options", "epochs", "batch_size", "lr",
          "device", "data", "workers", "out", "dry_run")


@click.command("run", cls=Command, examples=EXAMPLES, common=COMMON)
@click.argument("spec", required=False, metavar="[SPEC.toml]", type=PATH)
@methods_option("Methods to compare, as in lora:rank=4,ewc; repeatable. With a file: those of its methods to run, by "
                "name, by label or by name with options.")
@click.option("--benchmark", metavar="NAME", shell_complete=complete_names("benchmark", "benchmarks"),
              help="Benchmark (clbench benchmarks), or a function that returns an Avalanche benchmark: "
              "package.module:function or path/to/file.py:function.  [default: split-mnist-5k]")
@click.option("--scenario", metavar="LIST", help=f"Scenarios: {', '.join(SCENARIOS)}. Only task gives task IDs "
              "at test time.  [default: the benchmark's first]")
@model_option("Model, as in mlp:width=100 (clbench models).  [default: mlp]")
@click.option("--weights", metavar="FILE|NAME", help="Pretrained weights of the model: a file (safetensors, a torch "
              "state dict or Google's .npz), timm, timm:TAG, hf-hub:OWNER/NAME, or torchvision's name for them, such "
              "as IMAGENET1K_V1 (docs/pretrained.md).  [default: none]")
@click.option("--seeds", metavar="N|LIST", help="Number of seeds (3 is 0,1,2) or a list such as 0,4.  [default: 3]")
@click.option("--until", metavar="decided", help="Add seeds one at a time until every difference is decided, by "
              "sequential tests that stay valid (docs/choosing.md).")
@click.option("--max-seeds", type=int, metavar="N", help="Maximum number of seeds of a method, with --until "
              "decided.  [default: 30]")
@click.option("--baseline", metavar="METHOD", help="Method, by its label, with which --until decided compares each "
              "other one; best: decide which method is the best.  [default: naive if it is among them, else best]")
@click.option("--validation", type=float, metavar="SHARE", help="Share of the training samples to hold out and "
              "evaluate on; the test set is not used (docs/tuning.md).  [default: 0]")
@arrival_options
@recipe_options
@click.option("--set", "options", multiple=True, metavar="METHOD.OPTION=VALUE",
              help="Option of every method of that name or label; repeatable. Several values, as in "
              "lora.rank=1,2,4, make a row each; several such options make every combination.")
@click.option("--out", type=PATH, metavar="DIR",
              help="Run folder.  [default: runs/<name of the file or benchmark>]")
@execution_options()
@click.option("--shard", metavar="I/N", help="Part of the experiment to run, as in 2/8: one for each job of an "
              "array.  [default: all]")
@click.option("--log", default="", metavar="LIST", help="Trackers to which results are written (clbench trackers), as "
              "in tensorboard,wandb:project=mine.  [default: none]")
@plugin_option
@stale_options
@click.option("--dry-run", is_flag=True, help="List the trials with their state, trainable parameters and "
              "FLOPs; train nothing and write no records.")
@click.option("--open", "opens", is_flag=True, help="Open the report in a browser when the trials have ended.")
@click.option("--quiet", is_flag=True, help="Show no progress and no table: print the run folder's path, and errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, as in report.json, and "
              "nothing else on standard output.")
def command(spec: Path | None, options: tuple[str, ...], out: Path | None, shard: str | None, log: str,
            plugins: tuple[Path, ...], stale: OnStale, dry_run: bool, opens: bool, quiet: bool, as_json: bool,
            **flags: Any) -> int:
    """Run an experiment: every combination of methods, scenarios and seeds.

    clbench skips trials of the run folder that are finished or diverged, and runs failed ones again. If results are
    stale (their code or data have changed), those of diverged trials included, it lists them and trains nothing.
    """
    from clbench.core.errors import SpecError
    from clbench.core.registry import discover
    from clbench.execution import run
    from clbench.experiment.overrides import read_spec
    from clbench.report.analysis.readable import as_ids

    if dry_run and (opens or quiet or as_json):
        raise click.UsageError("--dry-run makes no report: leave --open, --quiet and --json out")
    if spec is None and flags["methods"] is None:
        raise SpecError(f"which methods? Pass them, as in {EXAMPLES[0][0]}, or name an experiment file")
    registry = discover(files=plugins)
    if spec is not None and not os.path.exists(spec) and any(
            part.strip().partition(":")[0] in registry.strategies for part in str(spec).split(",")):
        method_list = ",".join(filter(None, [flags["methods"], str(spec)]))
        raise SpecError(f"there is no experiment file {spec}. If you mean methods, give them as one list: "
                        f"--methods {method_list}")
    if flags["methods"] is not None:
        flags["methods"] = as_ids(flags["methods"], registry)
    experiment_spec = read_spec(spec, {}, flags, options, registry, note)
    folder = out or run.default_out(experiment_spec, spec)
    experiment = run.prepare(experiment_spec, registry, folder, log, shard, stale, note)
    exit_code = run_missing(experiment, dry_run, quiet)
    if exit_code is None:
        exit_code = conclude(experiment, quiet, as_json, opens)
    return exit_code


def note(text: str) -> None:
    """Print a message about slow work that happens before the progress display starts."""
    click.echo(text, err=True)


def run_missing(experiment: Experiment, dry_run: bool, quiet: bool = False) -> int | None:
    """Run the missing trials; return an exit code if the command should stop (dry run, interrupt), else None.

    Args:
        experiment: the experiment.
        dry_run: whether to only list the trials.
        quiet: whether to hide the progress.
    """
    from rich.console import Console

    from clbench.execution.progress import display
    from clbench.execution.until import carry_out
    from clbench.execution.workers.plan import Listener

    def show(part: Experiment) -> AbstractContextManager[Listener]:
        return nullcontext(Listener()) if quiet else display(Console(stderr=True, highlight=False), part.missing)

    for problem in experiment.problems:
        click.echo(f"Warning: {problem}", err=True)
    if dry_run:
        from clbench.cli.forecasts import listing, report_unbuilt

        table, errors = listing(experiment)
        click.echo(table)
        if experiment.most:
            click.echo(f"these first; then, until decided, a seed at a time, {experiment.most} trials at most")
        return report_unbuilt(errors)
    experiment.refuse_stale()
    try:
        carry_out(experiment, show, typed_command())
    except KeyboardInterrupt:
        total = len(experiment.planned)
        click.echo(f"interrupted: {total - len(experiment.missing)} of {total} trials are done, and "
                   f"{experiment.store.directory} has their results. Run the same command again to continue", err=True)
        return 130
    return None


def conclude(experiment: Experiment, quiet: bool, as_json: bool, opens: bool) -> int:
    """Write the report, print the requested parts, and return the exit code.

    Args:
        experiment: the experiment.
        quiet: whether to print the run folder's path only.
        as_json: whether to print the summary as JSON instead of anything else.
        opens: whether to open the report in a browser.
    """
    from clbench import report
    from clbench.execution.run import write_report
    from clbench.report.formats import json
    from clbench.report.formats.terminal import show
    from clbench.report.formatting import plural

    results = experiment.results()
    paths = write_report(experiment)
    if as_json:
        click.echo(json.render(report.build(results, ids=True)), nl=False)
    elif quiet:
        click.echo(experiment.store.directory)
    else:
        show(report.build(results, registry=experiment.registry))
        for path in paths:
            click.echo(f"report:  {path}")
        click.echo(f"records: {experiment.store.records}")
    if opens:
        open_report(experiment.store.directory / "report.html")
    status_counts = [(status, sum(r.status == status for r in results)) for status in ("failed", "diverged")]
    if any(count for _, count in status_counts):
        click.echo(", ".join(f"{plural(count, 'trial')} {status}" for status, count in status_counts if count),
                   err=True)
        return 1
    return 0


def open_report(page: Path) -> None:
    """Open a report in a browser, or print a message if there is no page or no browser."""
    import webbrowser

    if not page.is_file():
        click.echo(f"there is no {page} to open", err=True)
    elif not webbrowser.open(page.absolute().as_uri()):
        click.echo(f"no browser was found; the report is {page.absolute()}", err=True)
