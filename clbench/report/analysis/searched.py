"""Which of the methods that are compared had their options searched, and which had not."""

from __future__ import annotations

from collections.abc import Iterable

from clbench.report.analysis.grouping import Setting
from clbench.report.formatting import in_words


def searches(setting: Setting, labels: Iterable[str]) -> str:
    """Say which of the compared methods had their options searched, if not all were, and by as many candidates."""
    found = {m.label: m.searched for m in setting.methods if m.label in set(labels)}
    tried = {label: search.candidates for label, search in found.items() if search}
    if not tried or (len(tried) == len(found) and len(set(tried.values())) == 1):
        return ""
    others = [label for label in found if label not in tried]
    words = in_words([f"{label} ({number} candidates)" for label, number in tried.items()])
    unlike = (f"{in_words(others)} {'was' if len(others) == 1 else 'were'} not, so" if others
              else "with different numbers of candidates, so")
    return f"Tuned on validation samples: {words}; {unlike} differences may reflect the tuning"
