"""What a report says of how the number of seeds came about: by a rule, or after a look at earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clbench.experiment.until import question
from clbench.report.formatting import listed
from clbench.results.records import Record


def told(records: Sequence[Record]) -> Iterator[str]:
    """Yield a sentence where a rule has added seeds, and one where seeds were added after a report had been read."""
    until = next((r.until for r in records if r.until), None)
    if until is not None:
        yield (f"seeds were added where the question was open ({question(until)}): {until.first} to at most "
               f"{until.most} of a method (--until decided). So means are of different seeds, and differences of those "
               "that both methods have. Verdicts, p and ± are sequential: they hold whenever one stops. Intervals in "
               "the figures are the usual ones, which do not hold here")
    added = [r for r in records if r.seen]
    if added:
        seeds, shown = ({s for r in added for s in found(r)} for found in (lambda r: [r.trial.seed], lambda r: r.seen))
        rule = "the rule by which seeds are added" if until else "a number of seeds"
        yield (f"{_seeds(seeds)} {'was' if len(seeds) == 1 else 'were'} added after a report had shown "
               f"{_seeds(shown)}: the intervals and tests suppose {rule} fixed beforehand, and err more often where a "
               "look decides whether to go on (clbench run --until decided may look after each seed)")


def _seeds(found: set[int]) -> str:
    return f"seed{'s' * (len(found) > 1)} {listed(sorted(found))}"
