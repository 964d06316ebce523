"""The stability gap: how the accuracy on old tasks falls and recovers after a task boundary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from clbench.report.analysis.method_records import MethodRecords
from clbench.results.curve import gaps


def stability_gaps(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Yield a line on how far the accuracy on old tasks falls after a boundary, and how it comes back."""
    descriptions = [words for method in methods if (words := _gap(method))]
    if descriptions:
        yield ("Stability gap (docs/metrics.md): how the mean accuracy on old tasks changes after a new task begins, "
               f"averaged over boundaries and seeds. {'; '.join(descriptions)}")


def _gap(method: MethodRecords) -> str:
    method_gaps = [gap for r in method.done if r.curve and any(map(max, r.curve.steps)) for gap in gaps(r.curve)]
    if not method_gaps:
        return ""
    falls = f"{method.label} falls by {100 * fmean(gap.depth for gap in method_gaps):.1f} points"
    recovery_lengths = [gap.length for gap in method_gaps if gap.length is not None]
    if not recovery_lengths:
        return f"{falls} and does not recover"
    rise = 100 * fmean(gap.recovery for gap in method_gaps)
    return (f"{falls}, rises again by {rise:.1f} and recovers after {fmean(recovery_lengths):.0f} steps "
            f"({len(recovery_lengths)} of {len(method_gaps)} gaps recover)")
