"""Which of the compared methods were tuned and which were not."""

from __future__ import annotations

from collections.abc import Iterable

from clbench.report.analysis.grouping import Setting
from clbench.report.formatting import in_words


def searches(setting: Setting, labels: Iterable[str]) -> str:
    """Describe which of the compared methods were tuned, unless all were tuned with the same number of candidates."""
    search_of = {m.label: m.searched for m in setting.methods if m.label in set(labels)}
    tried = {label: search.candidates for label, search in search_of.items() if search}
    if not tried or (len(tried) == len(search_of) and len(set(tried.values())) == 1):
        return ""
    others = [label for label in search_of if label not in tried]
    words = in_words([f"{label} ({number} candidates)" for label, number in tried.items()])
    unlike = (f"{in_words(others)} {'was' if len(others) == 1 else 'were'} not, so" if others
              else "with different numbers of candidates, so")
    return f"Tuned on validation samples: {words}; {unlike} differences may reflect the tuning"
