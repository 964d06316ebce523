"""Regenerate each committed report (report.md, verify.md or explain.md, and its figures) from its records.

Pass names of folders below reports/ to regenerate only these. `--check` only lists the files that differ.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clbench.core.files import write_atomically
from clbench.core.registry import discover
from clbench.execution import explaining
from clbench.experiment import references
from clbench.report import build, explained
from clbench.report.columns import ACC
from clbench.report.figures.draw import draw_report
from clbench.report.formats import verified
from clbench.report.formats.markdown import render
from clbench.results import verification
from clbench.results.diff import group_by_method
from clbench.results.records import Record
from clbench.results.store import Store

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"


def folders(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the folders with these names, or those of all committed reports in alphabetical order."""
    return [root / name for name in names] or sorted(path.parent for name in MADE for path in root.rglob(name))


def report(folder: Path, records: Sequence[Record]) -> dict[str, bytes]:
    """Return report.md and its figures."""
    made = build(group_by_method(records))
    drawn = draw_report(made)
    return {"report.md": render(made).encode(), **{f"figures/{name}": content for name, content in drawn.items()}}


def verify(folder: Path, records: Sequence[Record]) -> dict[str, bytes]:
    """Return verify.md: the comparison with a published table."""
    _, reference = references.find(folder.name)
    trials = [[one.trial for one in cell] for cell in reference.plan(reference.cells, discover())]
    return {"verify.md": verified.markdown(reference, verification.check(reference, trials, records)).encode()}


def explain(folder: Path, records: Sequence[Record]) -> dict[str, bytes]:
    """Return explain.md and its figure. The present explain.md names the two experiments."""
    os.chdir(ROOT)  # the paths of the experiments are relative to it
    text = (folder / "explain.md").read_text(encoding="utf-8").replace("\\", "")
    a, b = map(Path, re.findall(r"benchmarks/\S+\.toml", text)[:2])
    seeds = sorted({r.trial.seed for r in records})
    study = explaining.prepare(a, b, ACC.column.title, {"seeds": seeds}, discover(), 400, folder)
    told = explaining.conclude(study, {r.key: r for r in records})
    return {"explain.md": explained.markdown(told).encode(), explained.FIGURE: explained.draw_waterfall(told)}


MADE = {"report.md": report, "verify.md": verify, "explain.md": explain}


def made(folder: Path) -> dict[Path, bytes]:
    """Return the content of each file of a report, generated from its records."""
    records, problems = Store(folder).read()
    if problems or not records:
        raise SystemExit(f"{folder}: {problems or 'no records'}")
    make = next(make for name, make in MADE.items() if (folder / name).exists())
    return {folder / name: content for name, content in make(folder, records).items()}


def differing(folder: Path, files: dict[Path, bytes]) -> Iterator[Path]:
    """Yield the files of a report that are missing, that differ, or that are no longer part of it."""
    for path, content in files.items():
        if not path.exists() or path.read_bytes() != content:
            yield path
    yield from (path for path in sorted((folder / "figures").glob("*")) if path not in files)


def main(root: Path = REPORTS, arguments: Sequence[str] | None = None) -> int:
    """Regenerate or check the reports, and return 1 if a check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="folder below reports/  [default: all]")
    parser.add_argument("--check", action="store_true", help="list the files that differ, and write nothing")
    given = parser.parse_args(arguments)
    count = 0
    for folder in folders(root, given.names):
        files = made(folder)
        for path in differing(folder, files):
            count += 1
            print(path.relative_to(root), flush=True)
            if given.check:
                continue
            if path in files:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, files[path])
            else:
                path.unlink()
    print(f"{count} file{'s' * (count != 1)} {'differ' if given.check else 'written or removed'}")
    return int(given.check and count > 0)


if __name__ == "__main__":
    sys.exit(main())
