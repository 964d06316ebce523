"""`clbench continue`: a trial that had ended learns new tasks."""

from __future__ import annotations

from pathlib import Path

import click

from clbench.cli.common_options import plugin_option, trial_arguments
from clbench.cli.completion import named
from clbench.cli.execution_options import execution_option
from clbench.cli.help import Command

EXAMPLES = (
    ("clbench run --methods er,ewc --keep state", "keeps what its methods need to learn on"),
    ("clbench continue runs/split-mnist-5k er/0 --benchmark split-fashion-mnist", "five more tasks, new outputs"),
)


@click.command("continue", cls=Command, examples=EXAMPLES)
@trial_arguments
@click.option("--benchmark", required=True, metavar="NAME", shell_complete=named("benchmark", "benchmarks"),
              help="Benchmark of the new tasks; options as in split-mnist:tasks=2.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the new record and model.  "
              "[default: RUN]")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="Device: auto (CUDA, "
              "or else the CPU), cpu, cuda, cuda:1 or mps.")
@execution_option("data")
@plugin_option
def command(run: Path, trial: str | None, benchmark: str, out: Path | None, device: str, data: Path | None,
            plugins: tuple[Path, ...]) -> int:
    """Let TRIAL (label/seed, or the beginning of a key) of the run folder RUN learn the tasks of another benchmark.

    It goes on by its own recipe from where it ended, without the samples of the old tasks but those that its method
    keeps. In scenarios task and class the model gets outputs for the new classes. The result is a new record, which
    names its parent and says what became of the old tasks. The run has kept the state by --keep state.
    docs/keeping-models.md says more.
    """
    import shlex
    import sys

    from clbench.core.registry import discover
    from clbench.execution import interrupts
    from clbench.execution.continuing import continue_trial
    from clbench.experiment.execution_settings import ExecutionSettings
    from clbench.experiment.plan import resolved_benchmark
    from clbench.results.store import Store

    registry = discover(files=plugins)
    more = resolved_benchmark(benchmark, registry)
    with interrupts.caught():
        record = continue_trial(run, trial, more, ExecutionSettings(data=data), device, out,
                                shlex.join(["clbench", *sys.argv[1:]]), registry)
    for note in record.notes:
        click.echo(note)
    if record.status == "done":
        click.echo(f"new tasks: {shown(record.R[-1])}")
        if record.earlier is not None:
            before, after = record.earlier.before, record.earlier.after[-1]
            click.echo(f"old tasks: {shown(after)}; before they were {shown(before)}")
    else:
        click.echo(f"{record.status}: {record.failure.message if record.failure else ''}", err=True)
    click.echo(f"record: {Store(out or run).path(record.key)} (clbench export {out or run} {record.key[:6]} --to DIR)")
    return int(record.status != "done")


def shown(row: list[float]) -> str:
    """Return the mean of accuracies and each of them, in per cent."""
    return f"{100 * sum(row) / len(row):.1f} % ({', '.join(f'{100 * a:.1f}' for a in row)})"
