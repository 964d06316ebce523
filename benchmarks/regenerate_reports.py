"""Write each committed report (report.md and its figures) again from its records: `benchmarks/regenerate_reports.py`.

Names of folders below reports/ limit it to these; `--check` writes nothing and lists the files that differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clbench.core.files import write_atomically
from clbench.report import build
from clbench.report.figures.draw import draw_report
from clbench.report.formats.markdown import render
from clbench.results.merge import by_method
from clbench.results.store import Store

REPORTS = Path(__file__).resolve().parent.parent / "reports"


def folders(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the folders of the committed reports, or those with these names, in alphabetical order."""
    return [root / name for name in names] or sorted(path.parent for path in root.rglob("report.md"))


def made(folder: Path) -> dict[Path, bytes]:
    """Return the files of a report as its records give them."""
    records, problems = Store(folder).read()
    if problems or not records:
        raise SystemExit(f"{folder}: {problems or 'no records'}")
    report = build(by_method(records))
    drawn = draw_report(report)
    return {folder / "report.md": render(report).encode(),
            **{folder / "figures" / name: content for name, content in drawn.items()}}


def differing(folder: Path, files: dict[Path, bytes]) -> Iterator[Path]:
    """Yield the files of a report that are missing, differ, or are not part of it any more."""
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
