"""Write benchmarks/reference/status.json, which `clbench verify` shows: FLOPs and verdicts of each reference.

    python benchmarks/reference_status.py                # only verdicts: takes seconds
    python benchmarks/reference_status.py --count        # also count the FLOPs of all references: takes minutes
    python benchmarks/reference_status.py --count NAME   # count the FLOPs of some references

FLOPs are those of training and evaluating all cells with one seed, counted from shapes. A method whose FLOPs cannot be
counted without data gets the mean of the other methods. The data of the benchmarks must be present; weights need not
be. Verdicts come from the committed records in reports/verify.
"""

from __future__ import annotations

import argparse
from collections import Counter
from statistics import fmean

from clbench.accounting.count import count
from clbench.accounting.estimator import counted_work
from clbench.accounting.shapes import stream_without_values
from clbench.core.files import write_atomically
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment import references
from clbench.experiment.references import Reference, Status, Statuses
from clbench.results import verification
from clbench.results.store import Store

REPORTS = references.PACKAGE.parent / "reports" / "verify"


def flops_of_a_seed(reference: Reference) -> float | None:
    """Return the FLOPs of training and evaluating all cells with one seed; None if none of them can be counted."""
    registry, counts = discover(), list[float]()
    cells = reference.plan(reference.cells, registry, {"seeds": 1}, dry_run=True)
    trials = {cell[0].trial.key: cell[0] for cell in cells}
    for planned in trials.values():
        runner = TrialRunner(reference.spec(reference.cells[0]).execution, "cpu", "", registry)
        stream = runner.stream(planned.trial)
        work = counted_work(count(planned, stream_without_values(stream), registry, training=True), stream)
        if work is not None:
            counts.append(sum(work.train_flops) + sum(work.test_flops))
    return fmean(counts) * len(trials) if counts else None


def verdicts_of(name: str, reference: Reference) -> dict[str, int]:
    """Return the number of cells with each verdict, from the committed records; empty if there are none."""
    if not (REPORTS / name).exists():
        return {}
    records, problems = Store(REPORTS / name).read()
    if problems:
        raise SystemExit(f"{REPORTS / name}: {problems}")
    cells = reference.plan(reference.cells, discover(), dry_run=True)
    checked = verification.check(reference, [[one.trial for one in cell] for cell in cells], records)
    return dict(Counter(one.verdict for one in checked))


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", nargs="*", metavar="NAME", help="count the FLOPs of these references, or of all")
    counted, before = parser.parse_args().count, references.statuses()
    if wrong := set(counted or ()) - set(references.shipped()):
        parser.error(f"there is no reference {min(wrong)}")
    known = {}
    for name, path in references.shipped().items():
        reference = references.read_reference(path)
        counts = counted is not None and (not counted or name in counted)
        flops = flops_of_a_seed(reference) if counts else before.get(name, Status()).flops
        known[name] = Status(flops=flops, verdicts=verdicts_of(name, reference))
        print(name, known[name], flush=True)
    write_atomically(path.parent / references.STATUS, Statuses(known).model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
