"""`clbench runs` and `clbench gc`: list run folders, and delete files that nothing refers to."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clbench.cli.common_options import PATH, execution_option
from clbench.cli.help import Command
from clbench.core.errors import list_names

if TYPE_CHECKING:
    from clbench.execution.housekeeping import RunFacts

PLACES = click.argument("places", nargs=-1, type=PATH, metavar="[DIR]...")
RUNS = Path("runs")  # default folder of run folders
HEADERS = ("run", "experiment", "methods", "seeds", "trials", "last", "size")
HOUR, DAY = 60, 60 * 24  # minutes


@click.command("runs", cls=Command, examples=(
    ("clbench runs", "lists the run folders in runs/"),
    ("clbench runs reports /scratch/me", "lists the run folders in these two folders"),
))
@PLACES
def runs(places: tuple[Path, ...]) -> None:
    """List run folders with their content, progress, age and size.

    clbench searches each DIR and up to three levels of its subfolders.  [default: runs]
    """
    from tabulate import tabulate

    from clbench.execution.housekeeping import survey
    from clbench.report.formatting import number
    from clbench.results.store import run_folders

    surveys = [survey(folder) for folder in run_folders(places or (RUNS,))]
    if not surveys:
        click.echo(f"no run folder in {', '.join(map(str, places or (RUNS,)))}")
        return
    now = datetime.datetime.now(datetime.timezone.utc)
    rows = [[facts.folder, list_names(facts.settings, 1), facts.methods, facts.seeds, progress(facts),
             age(now - facts.last) if facts.last else "", number(facts.bytes, "bytes")] for facts in surveys]
    click.echo(tabulate(rows, headers=HEADERS, disable_numparse=True,
                        colalign=("left", "left", "right", "right", "left", "right", "right")))


@click.command("gc", cls=Command, examples=(
    ("clbench gc", "deletes unused files of the runs in runs/, after asking"),
    ("clbench gc runs/old --dry-run", "lists the unused files, but deletes nothing"),
))
@PLACES
@execution_option("data")
@click.option("--yes", is_flag=True, help="Delete the files without asking.")
@click.option("--dry-run", is_flag=True, help="List the unused files, and delete nothing.")
def gc(places: tuple[Path, ...], data: Path | None, yes: bool, dry_run: bool) -> None:
    """Delete unused files of run folders and of the cache, after asking.

    Unused files are checkpoints of finished trials, files of trials without a record, and cached streams. A cached
    stream is kept if the installed code would read it for a trial that has a record in DIR or its subfolders. clbench
    never deletes records or reports.  [default: runs]
    """
    from clbench.core.files import default_data_dir
    from clbench.core.registry import discover
    from clbench.execution.housekeeping import garbage, remove
    from clbench.report.formatting import number
    from clbench.results.store import run_folders

    unused_files = garbage(run_folders(places or (RUNS,)), data or default_data_dir(), discover())
    for entry in unused_files:
        click.echo(f"{number(entry.bytes, 'bytes'):>9}  {entry.path}  ({entry.why})")
    total = number(sum(entry.bytes for entry in unused_files), "bytes")
    if not unused_files or dry_run:
        click.echo(f"{total} could be freed" if unused_files else "nothing to remove")
        return
    if not yes:
        click.confirm(f"Remove these {len(unused_files)}, {total}?", abort=True)
    click.echo(f"freed {number(remove(unused_files), 'bytes')}")


def progress(facts: RunFacts) -> str:
    """Return the progress of a run: `9 done, 1 failed, 2 running`."""
    parts: Iterable[tuple[int, str]] = (
        *((facts.states[state], state) for state in ("done", "failed", "diverged")), (facts.running, "running"),
        (facts.resumable, "interrupted"), (facts.unreadable, "unreadable"))
    return ", ".join(f"{count} {status}" for count, status in parts if count) or "none"


def age(passed: datetime.timedelta) -> str:
    """Return a time span in its largest unit.

    >>> age(datetime.timedelta(minutes=5)), age(datetime.timedelta(hours=30)), age(datetime.timedelta(hours=-1))
    ('5 min', '1 d', '0 min')
    """
    minutes = max(0, int(passed.total_seconds() // 60))  # another machine's clock may be ahead
    if minutes < HOUR:
        return f"{minutes} min"
    return f"{minutes // HOUR} h" if minutes < DAY else f"{minutes // DAY} d"
