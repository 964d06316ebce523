"""`clbench tune`: search methods' options on a validation split, and write the experiment with the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import (
    PATH,
    device_option,
    execution_options,
    methods_option,
    names_in,
    plugin_option,
    stale_options,
    typed_command,
)
from clbench.cli.help import Command
from clbench.cli.run import run_missing
from clbench.core.objective import find_metric
from clbench.core.seeds import FIRST_DEVELOPMENT_SEED, numbered

if TYPE_CHECKING:
    from clbench.core.registry import Registry
    from clbench.execution.reuse import OnStale
    from clbench.execution.run import Experiment
    from clbench.execution.tuning import Row
    from clbench.execution.workers.plan import Listener
    from clbench.experiment.spec import Spec

VALIDATION = 0.1  # default share of the training samples on which candidates are evaluated


def _seeds(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Read a number of seeds or a list, as `clbench run` does, but count from 1000: 0, 1, 2, ... are for results."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts) or parts == ["0"]:
        raise click.BadParameter(f"expected a number of seeds or a list such as 1000,1001, got {value!r}")
    try:
        numbers = list(map(int, parts))
        return numbers if len(numbers) > 1 else list(numbered(numbers[0], FIRST_DEVELOPMENT_SEED))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


EXAMPLES = (
    ("clbench tune experiment.toml --trials 10", "tunes each method with at most 10 candidates"),
    ("clbench run runs/experiment-tuning/tuned.toml", "runs the experiment with the chosen options"),
)
COMMON = ("methods", "trials", "widen", "seeds", "validation", "epochs", "iterations", "weights", "device", "data",
          "workers", "out", "dry_run")


@click.command("tune", cls=Command, examples=EXAMPLES, common=COMMON)
@click.argument("source", metavar="SPEC.toml", type=PATH)
@methods_option("Methods to tune, by name or label; repeatable.  [default: all with a [tune.METHOD] table, "
                "or all if there is no table]")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True,
              help="Maximum number of candidates per method and scenario; --widen can add more.")
@click.option("--widen", type=click.IntRange(min=0), metavar="N", default=2, show_default=True,
              help="Maximum number of values to add at each end of a list of numbers. clbench adds one while the best "
              "value is at that end.")
@click.option("--seeds", metavar="N|LIST", default="2", show_default=True, callback=_seeds,
              help=f"Number of seeds for each candidate, counted from {FIRST_DEVELOPMENT_SEED}, or a list of seeds. "
              "The experiment's own seeds are not allowed.")
@click.option("--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
              help="Share of the training samples to hold out for the evaluation of candidates.  [default: the "
              f"experiment's, or {VALIDATION} if it holds out none]")
@click.option("--epochs", type=int, help="Number of training epochs for each candidate.  [default: the experiment's]")
@click.option("--iterations", type=int, help="Number of optimizer steps per task for each candidate, instead of "
              "epochs.")
@click.option("--weights", metavar="FILE", help="Pretrained weights of the model, as for clbench run.")
@device_option("the experiment's")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder of the candidates, in which clbench writes "
              "tuned.toml.  [default: runs/<name of the file>-tuning]")
@click.option("--dry-run", is_flag=True, help="List the candidates of the first round with their trainable parameters "
              "and FLOPs, and estimate how long they take; train nothing and write no records.")
@execution_options(without=("compile", "retries", "evaluate_every", "evaluate_samples", "anatomy", "probe", "general"))
@plugin_option
@stale_options
def command(source: Path, methods: str | None, trials: int, widen: int, out: Path | None,
            plugins: tuple[Path, ...], stale: OnStale, dry_run: bool, **flags: Any) -> int:
    """Tune the options of each method with an equal search budget.

    The file names the options to tune, in a table [tune.METHOD] per method (docs/tuning.md). Without such tables,
    clbench tunes the learning rate of every method and the options that have values to try (clbench methods NAME).

    clbench compares candidates by mean ACC on held-out training samples and does not use the test set. For language
    models it uses NLL, for regression RMSE. If several candidates are within one standard error of the best, it chooses
    the lowest learning rate.

    DIR/tuned.toml is the experiment with the chosen options, for clbench run. DIR/candidates.md lists all candidates.
    If the command is interrupted, run it again to continue.
    """
    from importlib.metadata import version

    from clbench.core.registry import discover
    from clbench.execution import tuning
    from clbench.execution.candidates import candidates_page
    from clbench.experiment.overrides import read_spec, tomlkit, write_tuned
    from clbench.report.writing import write_file

    registry = discover(files=plugins)
    original, source_text = read_spec(source, {}, {}, ()), source.read_text(encoding="utf-8-sig")
    tomlkit().parse(source_text)  # an error or a missing library ends the command before hours of search, not after
    share = flags["validation"] or original.validation or VALIDATION
    spec = read_spec(source, {}, {**flags, "validation": share}, ())
    _check_seeds(original, spec)
    names = names_in(methods)
    rows = tuning.rows_of(spec, registry, trials, names, widen)
    if not spec.tune and not names:
        for name in tuning.find_unsearched(rows, spec, registry):
            click.echo(f"{name}: it has nothing to search and stays as it is", err=True)
    if labels := find_single_rates(rows, spec, registry):
        click.echo("Note: this search has one learning rate for the pretrained backbone and its new heads in "
                   f"{', '.join(labels)}. Methods that train the backbone need a higher rate for the heads: search "
                   "recipe.head_lr too (docs/tuning.md)", err=True)
    out, command_line = out or Path("runs") / f"{source.stem}-tuning", typed_command()
    if dry_run:
        _, experiment = next(tuning.propose_rounds(rows, spec, registry, out, stale))
        exit_code = run_missing(experiment, dry_run)
        click.echo("These are the candidates of the first round. Their results decide whether there are more "
                   "(--trials, --widen).")
        return exit_code or 0
    try:
        records = tuning.search(rows, spec, registry, out, _open_progress, command_line, stale)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {out} has the results of finished trials. Run the same command again to "
                   "continue", err=True)
        return 130
    versions = {**records[-1].provenance.versions, **({"optuna": version("optuna")} if _uses_optuna(rows) else {})}
    budget = {name: flags[name] for name in ("epochs", "iterations") if flags[name] is not None}
    search = tuning.account(rows, spec, trials, budget, command_line, versions, widen)
    tuned = write_tuned(out / "tuned.toml", source_text, tuning.choose_methods(original, spec, rows, registry), search)
    write_file(out / "candidates.md", candidates_page(tuned.tuning))
    click.echo(table(rows))
    for row in rows:
        for note in row.notes:
            click.echo(f"{row.label}, scenario {row.scenario}: {note}", err=True)
    if untuned := tuning.find_unsearched(rows, spec, registry):
        click.echo(f"Not tuned, with the settings of {source} in tuned.toml: {', '.join(untuned)}", err=True)
    click.echo(f"all candidates: {out / 'candidates.md'}\ntheir report:   {out / 'report.md'}\n"
               f"experiment:     {out / 'tuned.toml'}")
    return int(any(r.status == "failed" for r in records))


def _check_seeds(original: Spec, spec: Spec) -> None:
    """Reject the experiment's own seeds: options would be fitted to their batches and initial weights."""
    from clbench.core.errors import SpecError
    from clbench.experiment.until import sequence
    from clbench.report.formatting import as_ranges

    seeds = sequence(original.seeds, original.max_seeds) if original.until else original.seeds
    if shared := sorted(set(seeds) & set(spec.seeds)):
        raise SpecError(f"--seeds: {as_ranges(shared)} {'are' if len(shared) > 1 else 'is'} among the experiment's own "
                        "seeds; tune with others")


def find_single_rates(rows: Sequence[Row], spec: Spec, registry: Registry) -> list[str]:
    """Return the labels of the methods whose pretrained backbone and heads share a learning rate that is searched.

    A language model has no new heads.
    """
    from clbench.core.objective import ACCURACY
    from clbench.execution.candidates import RATES
    from clbench.experiment.plan import plan
    from clbench.experiment.trial import has_one_rate

    rate, head_rate = RATES
    suspects = [row for row in rows if row.metric == ACCURACY.name and rate in row.space and head_rate not in row.space]
    return list(dict.fromkeys(
        row.label for row in suspects for planned in
        plan(spec.model_copy(update={"methods": (row.method,), "scenario": (row.scenario,)}), registry)
        if has_one_rate(planned.trial)))


def _uses_optuna(rows: Sequence[Row]) -> bool:
    from clbench.execution.samplers import TPE

    return any(isinstance(row.sampler, TPE) for row in rows)


def _open_progress(experiment: Experiment) -> AbstractContextManager[Listener]:
    """Return the progress display of a round; a silent listener if no trial is missing."""
    from rich.console import Console

    from clbench.execution.progress import display
    from clbench.execution.workers.plan import Listener

    if not experiment.missing:
        return nullcontext(Listener())
    return display(Console(stderr=True, highlight=False), experiment.missing)


def table(rows: Sequence[Row]) -> str:
    """Return a table with each row's chosen options, their scores and the scores of the other candidates."""
    from tabulate import tabulate

    from clbench.execution.candidates import mean_value, standard_error, value_text
    from clbench.execution.samplers import describe
    from clbench.report.formatting import unit_of
    from clbench.report.model import UNIT_SUFFIX

    lines = []
    for row in rows:
        chosen, error = row.chosen, standard_error(row.chosen.acc)
        other_candidates = [candidate for candidate in row.ranking if candidate is not chosen]
        without_result = sum(not t.acc for t in row.tried)
        lines.append([row.label, row.scenario, describe(chosen.options), mean_value(chosen),
                      "one seed" if error is None else value_text(chosen, error),
                      mean_value(other_candidates[0]) if other_candidates else "", mean_value(row.ranking[-1]),
                      f"{len(row.tried)}" + (f", {without_result} without result" if without_result else "")])
    metric = find_metric(rows[0].chosen.metric)
    unit = UNIT_SUFFIX.get(unit_of(metric), "")
    headers = ["method", "scenario", "chosen options", f"validation\n{metric.short}{unit}", "standard\nerror",
               "best of\nothers", "worst", "candidates"]
    return tabulate(lines, headers, disable_numparse=True, colalign=("left",) * 3 + ("right",) * 4 + ("left",))
