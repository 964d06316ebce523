"""Notes on the number of seeds: whether a rule added seeds, or a user did after an interim analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clbench.experiment.until import question
from clbench.report.formatting import listed
from clbench.results.records import Record


def describe_added_seeds(records: Sequence[Record]) -> Iterator[str]:
    """Yield a sentence if a rule added seeds, and one if seeds were added after a report had been read."""
    until = next((r.until for r in records if r.until), None)
    if until is not None:
        yield (f"Seeds were added until this was decided: {question(until)}. Each method has {until.first} to at most "
               f"{until.most} seeds (--until decided). Differences are taken over the seeds that both methods have. "
               "Verdicts, p-values and ± are sequential and hold whenever one stops; the intervals in figures are not")
    added = [r for r in records if r.seen]
    if added:
        seeds, shown = ({s for r in added for s in pick(r)} for pick in (lambda r: [r.trial.seed], lambda r: r.seen))
        yield (f"{_seeds(seeds)} {'was' if len(seeds) == 1 else 'were'} added after a report had shown "
               f"{_seeds(shown).lower()}. Intervals and tests assume "
               f"{'a rule for adding seeds' if until else 'a number of seeds'} that was fixed in advance; they err "
               "more often if interim results decide whether to continue. With --until decided, interim analyses are "
               "allowed")


def _seeds(seeds: set[int]) -> str:
    return f"Seed{'s' * (len(seeds) > 1)} {listed(sorted(seeds))}"
