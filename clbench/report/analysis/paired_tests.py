"""Methods compared in pairs, seed by seed: the tests behind bold numbers, the tables of differences, and verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from clbench.experiment.until import UntilDecided
from clbench.report.analysis.families import Family, Pair, Values, family, leader
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.searched import searches
from clbench.report.columns import MEASURES, Measure
from clbench.report.formatting import NONE, interval, named, number
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.paired import Test, saturated_rate
from clbench.results.stats import ALPHA, effect_size, seeds_needed


def winners(column: Column, values: Values, eligible: Collection[str], tests: Family | None = None,
            until: UntilDecided | None = None) -> set[str]:
    """Return the methods that are shown to be better than all others: the best one and its equals, or none.

    Args:
        column: its direction says which is better.
        values: of all methods that are compared, those too that cannot win.
        eligible: labels of those that may win.
        tests: of all pairs, if they are known already.
        until: the rule by which seeds were added, if they were.
    """
    running = {label: found for label, found in values.items() if label in eligible}
    if len(running) < 2:
        return set()
    best = leader(column, running, tests)
    if tests is None:
        alone = family(column, values, best, len(values) * (len(values) - 1) // 2, until)
        if until is None and not all(p.equal or p.p <= ALPHA for p in alone.pairs if p.first in running):
            return set()  # what is not shown by itself is not shown by a corrected p either
        tests = family(column, values, until=until)
        best = leader(column, running, tests)
    others = [pair for pair in tests.against(best) if pair.first in running]
    equal = {pair.first for pair in others if pair.equal}
    beaten = [pair for pair in others if not pair.equal]
    shown = beaten and all((pair.significant and pair.better(column.direction) == best) or pair.first in tests.dropped
                           for pair in beaten)
    return {best, *equal} if shown else set()


def table(title: str, tests: Family, pairs: Sequence[Pair], seeds: int, baseline: str | None = None) -> Table:
    """Return the table of some of a family's pairs.

    Args:
        title: what is compared.
        tests: the family.
        pairs: the rows.
        seeds: how many the setting has; pairs with fewer say so.
        baseline: the second of all pairs, so that the first names a row; else both do.
    """
    unit = "points" if tests.column.unit == "percent" else tests.column.unit
    columns = (Column("seeds", "text"), Column("difference", unit), Column("test", "text"), Column("p", "number"),
               Column(f"p, corrected for {len(tests.pairs)}", "number"), Column("effect size", "number"),
               Column("verdict", "text"))
    rows = []
    for pair in pairs:
        over, effect = pair.interval, effect_size(pair.differences)
        n = over.n
        rows.append(Row(pair.first if baseline else f"{pair.first} minus {pair.second}", (
            Cell(str(n) if n == seeds or pair.until else f"{n} of {seeds}"),
            Cell(interval(over.mean, over.half_width, unit), over.mean, over.half_width, n, low=over.low,
                 high=over.high),
            Cell(TESTS[pair.test] if pair.test else NONE),
            Cell(f"{pair.p:.2g}", pair.p, n=n), Cell(f"{pair.corrected:.2g}", pair.corrected, n=n),
            Cell(NONE, n=n) if effect is None else Cell(number(effect, "number"), effect, n=n),
            Cell(_verdict(pair, tests.column.direction, baseline)))))
    return Table(title, columns, tuple(rows), corner="method" if baseline else "pair")


TESTS: Mapping[Test, str] = {"flips": "sign flips", "t": "paired t", "sequential": "sequential t"}


def _verdict(pair: Pair, direction: str | None, baseline: str | None) -> str:
    if pair.equal:
        return "equal on every seed"
    if not pair.decidable:
        return "cannot be decided"
    if not pair.significant:
        return "no difference shown"
    if baseline:
        return "better" if pair.better(direction) == pair.first else "worse"
    return f"{pair.better(direction)} is better"


def undecided(tests: Family) -> str | None:
    """Say that no pair can be decided, since a single seed tells nothing; None if some can be."""
    if any(pair.decidable for pair in tests.pairs):
        return None
    if (until := tests.until) is not None:
        return f"cannot be decided before {until.first} seeds"
    needed = seeds_needed(len(tests.pairs))
    return f"cannot be decided with 1 seed; {f'{needed} would do' if needed else 'compare fewer methods'}"


def basis(tests: Family, against: str = "") -> str:
    """Say which test decides in a family, what it supposes, and how often it errs where that does not hold.

    Args:
        tests: the family.
        against: of what, where not all pairs are compared.
    """
    size, pairs = len(tests.pairs), tests.pairs
    by_t = [len(pair.differences) for pair in pairs if pair.test == "t"]
    flips = [len(pair.differences) for pair in pairs if pair.test == "flips"]
    asked = f"{size} {'test' if size == 1 else 'tests'} " + (f"against {against}" if against else "of all pairs")
    said = [f"a sequential t test decides in {asked}, Holm's correction: {looks(tests.until)}"] if tests.until else []
    if flips:
        said.append(f"sign flips decide in {asked}, Holm's correction, with {_range(flips)}")
    if by_t:
        said.append(f"the paired t test decides in {asked}, Holm's correction: {_range(by_t)} are too few for sign "
                    "flips. It supposes normal differences; where a method is close to 100 % it was found to make a "
                    f"false claim in up to {100 * saturated_rate(min(by_t)):.0f} % of such families, instead of 5 %")
    return "; ".join(said)


def looks(until: UntilDecided) -> str:
    """Say what a rule by which seeds were added lets one look at."""
    return (f"a look after each seed from {until.first} to at most {until.most}, valid whenever one stops (Jennison & "
            "Turnbull 1991)")


def _range(seeds: Sequence[int]) -> str:
    low, high = min(seeds), max(seeds)
    return f"{low} seeds" if low == high else f"{low} to {high} seeds"


def verdict(tests: Family, best: str, others: Collection[str], rank: str) -> str:
    """Say in a sentence how the method with the best mean compares with each of the others.

    Args:
        tests: at least one pair.
        best: the method.
        others: all that are compared, whether they share seeds with it or not.
        rank: which mean it has, in words.
    """
    if (why := undecided(tests)) is not None:
        return f"which method is best {why}"
    pairs = tests.against(best)
    shown = [(p.first, p.better(tests.column.direction) == best) for p in pairs if p.significant]
    better, worse = ([name for name, won in shown if won == wanted] for wanted in (True, False))
    if len(better) == len(others):
        return f"{best} is better than every other method"
    groups = [("better than", better), ("worse on shared seeds than", worse),
              ("equal on every seed to", [p.first for p in pairs if p.equal]),
              ("no difference shown to", [p.first for p in pairs if p.decidable and not p.significant and not p.equal]),
              ("too few seeds to compare with", [p.first for p in pairs if not p.decidable and not p.equal]),
              ("no seed in common with", [name for name in others if name not in {p.first for p in pairs}])]
    return f"{best} has {rank}; " + "; ".join(f"{words} {named(names)}" for words, names in groups if names)


Compared = tuple[tuple[str, ...], tuple[Table, ...]]  # verdicts, a table per measure


def all_pairs(setting: Setting) -> dict[Measure, Family]:
    """Return the tests of all pairs of methods, of each measure whose differences reports test."""
    return {m: family(m.column, setting.compared(m), until=setting.until) for m in MEASURES if m.in_report}


def compare_with_best(setting: Setting, families: Mapping[Measure, Family]) -> Compared:
    """Return the differences of methods to the best one, of each measure that reports test: verdicts and tables.

    The same data decide which method is best, so p-values are corrected over all pairs, which `all_pairs` gives.
    """
    verdicts: list[tuple[str, str]] = []
    tables = []
    for measure, tests in families.items():
        values = setting.compared(measure)
        if tests.pairs:
            complete = {label: found for label, found in values.items() if label in setting.eligible}
            best = leader(measure.column, complete or values, tests)
            first = {best: values[best], **values}  # of equal means the first leads
            rank = "the best mean" + ("" if leader(measure.column, first) == best else
                                      " of those in the running" if setting.until else " of those with all seeds")
            others = [label for label in values if label != best]
            told = verdict(tests, best, others, rank)
            verdicts.append((measure.column.title, told))
            if against := tests.against(best):
                tables.append(table(f"{measure.column.title}: each method minus {best}, which has {rank}", tests,
                                    against, len(setting.seeds), best))
    return _by_verdict(verdicts), tuple(tables)


def compare_with_baseline(setting: Setting) -> tuple[Table, ...]:
    """Return the differences of methods to the setting's baseline, a table per measure that reports test."""
    baseline = setting.baseline
    return compare(setting, [m for m in MEASURES if m.in_report], baseline)[1] if baseline else ()


def compare(setting: Setting, measures: Sequence[Measure], baseline: str | None) -> Compared:
    """Return the differences of all pairs of methods, or of each method to a baseline: verdicts and tables.

    References take part only as the baseline, or if there is a single method, which is compared with each of them. If
    the setting lacks the baseline, the verdict says so.
    """
    verdicts: list[tuple[str, str]] = []
    tables = []
    for measure in measures:
        title = measure.column.title
        values = setting.compared(measure, [baseline] if baseline else [])
        if baseline is not None and baseline not in values:
            verdicts.append((title, _without(setting, baseline)))
            continue
        tests = family(measure.column, values, baseline, until=setting.until)
        title_end, opponents = (f"each method minus {baseline}", baseline) if baseline else ("all pairs of methods", "")
        if baseline is None and len(values) == 1:
            (method,), values = values, setting.compared(measure, [m.label for m in setting.methods])
            tests = family(measure.column, values, method, until=setting.until)
            tests = replace(tests, pairs=tuple(pair.swapped for pair in tests.pairs))
            title_end, opponents = f"{method} minus each reference", "each reference"
        if not tests.pairs:
            verdicts.append((title, "nothing to compare" + (f" with {baseline}" if baseline else "")))
            continue
        why = undecided(tests) or basis(tests, opponents)
        verdicts.append((title, "; ".join(filter(None, [why, searches(setting, values)]))))
        tables.append(table(f"{title}: {title_end}", tests, tests.pairs, len(setting.seeds), baseline))
    return _by_verdict(verdicts), tuple(tables)


def _without(setting: Setting, baseline: str) -> str:
    """Say why nothing can be compared with a baseline that has no values of a measure."""
    method = next((m for m in setting.methods if m.label == baseline), None)
    if method is None:
        return f"nothing is compared here, because the baseline {baseline} was not run in this setting"
    if not method.done:
        return f"nothing is compared here, because no trial of the baseline {baseline} gave a result"
    return f"nothing is compared here, because the baseline {baseline} lacks this metric on some seed"


def _by_verdict(verdicts: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return `metric: verdict` for each verdict, with all metrics that share it."""
    titles: dict[str, list[str]] = {}
    for title, text in verdicts:
        titles.setdefault(text, []).append(title)
    return tuple(f"{', '.join(sharing)}: {text}" for text, sharing in titles.items())
