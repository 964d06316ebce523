"""List the stale committed records, whose code differs from the installed code: `make stale`."""

from __future__ import annotations

from pathlib import Path

from clbench.core.registry import discover
from clbench.results.provenance import group_by_reason, stale_records
from clbench.results.store import Store

REPORTS = Path(__file__).resolve().parents[1] / "reports"


def main(reports: Path = REPORTS) -> int:
    """Print a line for each folder and method with stale records, and return the number of stale records."""
    registry, count, known, every = discover(), 0, 0, 0
    for folder in sorted({path.parent for path in reports.rglob("records")}):
        records, problems = Store(folder).read()
        if problems:
            raise SystemExit(f"{folder}: {problems}")
        found = stale_records(records, registry)
        every, count = every + len(records), count + len(found)
        known += sum(bool(record.provenance.code) for record in records)
        for line in group_by_reason(found):
            print(f"{folder.relative_to(reports)}: {line}")
    print(f"{count} of {every} records are stale; {every - known} do not tell their code")
    return count


if __name__ == "__main__":
    main()
