"""`clbench verify`: repeat published numbers, and report whether each is reproduced."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
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
    require_only,
    stale_options,
)
from clbench.cli.help import Command

if TYPE_CHECKING:
    from clbench.core.registry import Registry
    from clbench.execution.reuse import OnStale
    from clbench.experiment.references import Cell, Reference


def _lacks_data(reference: Reference, registry: Registry, folder: Path) -> bool:
    """Return whether some data of a reference's benchmarks are missing from the data folder."""
    from clbench.cli.data import describe
    from clbench.core.options import validate
    from clbench.experiment.spec import Named

    for named in (Named.model_validate(reference.experiment["benchmark"]),
                  *(cell.benchmark for cell in reference.cells if cell.benchmark)):
        info = registry.benchmark(named.name)
        options = validate(info.options, named.options, named.name, "clbench benchmarks")
        if info.data is not None and describe(info, options, folder)["status"] != "found":
            return True
    return False


def _cells_for_device(reference: Reference, cells: list[Cell], given: dict[str, Any],
                      note: Callable[[str], None]) -> list[Cell]:
    """Return the cells that the device can run, and note which ones it cannot.

    Raises:
        SpecError: the device can run none of them.
    """
    from clbench.core.errors import SpecError

    names = ", ".join(dict.fromkeys(cell.label for cell in cells if cell.gpu))
    if not names:
        return cells
    import torch

    device = reference.spec(cells[0], given).device
    if device != "cpu" and (device != "auto" or torch.cuda.is_available()):
        return cells
    message = f"methods that do not work on a CPU are not run: {names}. Use a GPU (--device cuda)"
    if all(cell.gpu for cell in cells):
        raise SpecError(message)
    note(message)
    return [cell for cell in cells if not cell.gpu]


EXAMPLES = (
    ("clbench verify", "lists the published tables that come with clbench"),
    ("clbench verify van-de-ven-split-mnist --methods naive,ewc --seeds 5",
     "reproduces the numbers of two methods with five seeds"),
)
FOR_LISTING = ("data", "plugins")  # options that the list of tables accepts
COMMON = ("scenario", "methods", "seeds", "weights", "device", "data", "workers", "out", "dry_run")


@click.command("verify", cls=Command, examples=EXAMPLES, common=COMMON)
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--scenario", metavar="LIST", help="Reproduce only the numbers of these scenarios.  [default: all]")
@methods_option("Reproduce only the numbers of these methods; repeatable.  [default: all]")
@click.option("--seeds", metavar="N|LIST", help="Number of seeds or a list such as 0,4.  [default: the table's]")
@click.option("--weights", metavar="FILE", help="Pretrained weights, for tables that need them.")
@device_option("the table's, or auto")
@click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [default: runs/verify-NAME]")
@execution_options(without=("compile", "retries", "evaluate_every", "evaluate_samples", "general"))
@plugin_option
@stale_options
@click.option("--dry-run", is_flag=True, help="List the trials with their state, trainable parameters and "
              "FLOPs; train nothing and write no records.")
@click.pass_context
def command(context: click.Context, /, name: str | None, scenario: str | None, methods: str | None, out: Path | None,
            plugins: tuple[Path, ...], stale: OnStale, dry_run: bool, **given: Any) -> int:
    """Reproduce a published table, with a verdict on each number.

    NAME is a table that comes with clbench, or the path of a TOML file that describes another one. Without NAME,
    clbench lists its tables. It runs only trials that have no results yet. The exit code is 1 if a number was not
    reproduced or a trial failed.
    """
    from clbench.cli.run import note, run_missing
    from clbench.core.files import default_data_dir
    from clbench.core.registry import discover
    from clbench.execution import run
    from clbench.experiment import references
    from clbench.report.formats import verified
    from clbench.report.writing import write_file
    from clbench.results import provenance, verification

    if name is None:
        require_only(context, FOR_LISTING, "the name of a table: clbench verify NAME (clbench verify lists the tables)")
    registry = discover(files=plugins)
    if name is None:
        all_references = {key: references.read_reference(path) for key, path in references.shipped().items()}
        data_dir = Path(given["data"]) if given.get("data") else default_data_dir()
        without_data = [key for key, reference in all_references.items() if _lacks_data(reference, registry, data_dir)]
        click.echo(verified.listing(all_references, references.statuses(), without_data))
        return 0
    reference_name, reference = references.find(name)
    chosen_cells = _cells_for_device(reference, reference.choose(names_in(scenario), names_in(methods)), given, note)
    # Cells that differ only in the metric share their trials.
    planned_cells = reference.plan(chosen_cells, registry, given, dry_run)
    all_planned_cells = reference.plan(reference.cells, registry, {"weights": given["weights"]}, dry_run)
    planned = list({trial.trial.key: trial for trial in chain.from_iterable(planned_cells)}.values())
    experiment = run.load_run(reference.spec(chosen_cells[0], given), planned, registry,
                              out or Path("runs") / f"verify-{reference_name}", stale, note)
    exit_code = run_missing(experiment, dry_run)
    if exit_code is not None:
        return exit_code
    cells = [[item.trial for item in cell] for cell in all_planned_cells]
    # Records of cells that were not chosen count too, but only the planned trials have been checked.
    stale_reasons = {r.key: reasons for r, reasons in provenance.stale_records(experiment.records.values(), registry)}
    records = [r.model_copy(update={"stale": r.stale or stale_reasons.get(r.key, [])})
               for r in experiment.records.values()]
    checked = verification.check(reference, cells, records)
    path = experiment.store.directory / "verify.md"
    write_file(path, verified.markdown(reference, checked))
    click.echo(verified.format_plain(reference, checked))
    click.echo(f"verdicts: {path}\nrecords:  {experiment.store.records}")
    return int(any(item.verdict == "not reproduced" or item.failed for item in checked))
