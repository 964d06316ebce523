"""What the accuracy while tasks are learned says of the boundaries between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from clbench.report.analysis.method_records import MethodRecords
from clbench.results.curve_metrics import gaps


def stability_gaps(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Yield a line on how far the accuracy on old tasks falls after a boundary, and how it comes back."""
    told = [words for method in methods if (words := _gap(method))]
    if told:
        yield ("Stability gap (docs/metrics.md): how the mean accuracy on old tasks changes after a new task begins, "
               f"averaged over boundaries and seeds. {'; '.join(told)}")


def _gap(method: MethodRecords) -> str:
    found = [gap for r in method.done if r.curve and any(map(max, r.curve.steps)) for gap in gaps(r.curve)]
    if not found:
        return ""
    falls = f"{method.label} falls by {100 * fmean(gap.depth for gap in found):.1f} points"
    back = [gap.length for gap in found if gap.length is not None]
    if not back:
        return f"{falls} and does not recover"
    rise = 100 * fmean(gap.recovery for gap in found)
    return (f"{falls}, rises again by {rise:.1f} and recovers after {fmean(back):.0f} steps "
            f"({len(back)} of {len(found)} gaps recover)")
