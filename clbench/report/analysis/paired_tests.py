"""Methods compared in pairs, seed by seed: the tests behind bold numbers, the tables of differences, and verdicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from clbench.report.analysis.grouping import Setting
from clbench.report.columns import MEASURES, Measure
from clbench.report.formatting import NONE, interval, number
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.stats import (
    ALPHA,
    ROUNDING,
    effect_size,
    holm,
    mean_interval,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)

Values = Mapping[str, Mapping[int, float]]  # a measure by method and seed


@dataclass(frozen=True)
class Pair:
    """Two methods on the seeds that both have."""

    first: str
    second: str
    differences: tuple[float, ...]  # first minus second, by seed; at least one
    p: float
    corrected: float  # p, corrected over the family
    attainable: float  # the smallest corrected p that this number of seeds can give

    @property
    def equal(self) -> bool:
        """Tell whether the two are equal on every seed, up to rounding."""
        return all(abs(d) <= ROUNDING for d in self.differences)

    @property
    def significant(self) -> bool:
        """Tell whether the test shows a difference."""
        return self.corrected <= ALPHA

    @property
    def decidable(self) -> bool:
        """Tell whether this number of seeds could show a difference at all."""
        return self.attainable <= ALPHA

    @property
    def swapped(self) -> Pair:
        """Return the pair as second minus first."""
        return replace(self, first=self.second, second=self.first, differences=tuple(-d for d in self.differences))

    def better(self, direction: str | None) -> str:
        """Return the method that is better by its mean."""
        return self.first if (sum(self.differences) > 0) == (direction == "up") else self.second


@dataclass(frozen=True)
class Family:
    """Pairs whose p-values are corrected together, since any of them may be taken for a finding."""

    column: Column
    pairs: tuple[Pair, ...]

    def against(self, method: str) -> list[Pair]:
        """Return the pairs with this method, each as the other method minus this one."""
        return [p.swapped if p.first == method else p for p in self.pairs if method in (p.first, p.second)]


def family(column: Column, values: Values, baseline: str | None = None) -> Family:
    """Return the tests of all pairs of methods, or of each method with a baseline, on the seeds they share."""
    chosen = combinations(values, 2) if baseline is None else ((m, baseline) for m in values if m != baseline)
    found = [(a, b, tuple(values[a][s] - values[b][s] for s in sorted(values[a].keys() & values[b].keys())))
             for a, b in chosen]
    found = [pair for pair in found if pair[2]]
    by_length: dict[int, dict[tuple[float, ...], float]] = {}
    for n in {len(d) for *_, d in found}:
        same = [d for *_, d in found if len(d) == n]
        by_length[n] = dict(zip(same, sign_flip_p(same), strict=True))
    ps = [by_length[len(d)][d] for *_, d in found]
    attainable = holm([smallest_p(len(d)) for *_, d in found])
    return Family(column, tuple(Pair(a, b, d, p, corrected, least) for (a, b, d), p, corrected, least
                                in zip(found, ps, holm(ps), attainable, strict=True)))


def leader(column: Column, values: Values) -> str:
    """Return the method with the best mean, the first of those that have it."""
    means = {name: fmean(by_seed.values()) for name, by_seed in values.items()}
    return (max if column.direction == "up" else min)(means, key=lambda name: means[name])


def winners(tests: Family, values: Values) -> set[str]:
    """Return the methods that are shown to be better than all others: the best one and its equals, or none.

    Args:
        tests: of all pairs; they may include methods that cannot win.
        values: of the methods that may win.
    """
    if len(values) < 2:
        return set()
    best = leader(tests.column, values)
    others = [pair for pair in tests.against(best) if pair.first in values]
    equal = {pair.first for pair in others if pair.equal}
    beaten = [pair for pair in others if not pair.equal]
    return {best, *equal} if beaten and all(pair.significant for pair in beaten) else set()


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
    columns = (Column("seeds", "text"), Column("difference", unit), Column("p", "number"),
               Column(f"p, corrected for {len(tests.pairs)}", "number"), Column("effect size", "number"),
               Column("verdict", "text"))
    rows = []
    for pair in pairs:
        over, effect = mean_interval(pair.differences), effect_size(pair.differences)
        n = over.n
        rows.append(Row(pair.first if baseline else f"{pair.first} minus {pair.second}", (
            Cell(str(n) if n == seeds else f"{n} of {seeds}"),
            Cell(interval(over.mean, over.half_width, unit), over.mean, over.half_width, n, low=over.low,
                 high=over.high),
            Cell(f"{pair.p:.2g}", pair.p, n=n), Cell(f"{pair.corrected:.2g}", pair.corrected, n=n),
            Cell(NONE, n=n) if effect is None else Cell(number(effect, "number"), effect, n=n),
            Cell(_verdict(pair, tests.column.direction, baseline)))))
    return Table(title, columns, tuple(rows), corner="method" if baseline else "pair")


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
    """Say that no pair can be decided with these seeds, and how many would do; None if some can be."""
    if any(pair.decidable for pair in tests.pairs):
        return None
    seeds, size = max(len(pair.differences) for pair in tests.pairs), len(tests.pairs)
    least = f"smallest possible p = {smallest_p(seeds):.2g}"
    if size > 1:
        least += f", corrected for {size} pairs p = {min(1.0, size * smallest_p(seeds)):.2g}"
    needed = seeds_needed(size)
    return (f"cannot be decided with {seeds} {'seed' if seeds == 1 else 'seeds'} ({least}); "
            + (f"{needed} would do" if needed else "compare fewer methods"))


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
    return f"{best} has {rank}; " + "; ".join(f"{words} {', '.join(names)}" for words, names in groups if names)


Compared = tuple[tuple[str, ...], tuple[Table, ...]]  # verdicts, a table per measure


def compare_with_best(setting: Setting) -> Compared:
    """Return the differences of methods to the best one, of each measure that reports test: verdicts and tables.

    The same data decide which method is best, so p-values are corrected over all pairs.
    """
    verdicts: list[tuple[str, str]] = []
    tables = []
    for measure in (m for m in MEASURES if m.in_report):
        values = setting.compared(measure)
        tests = family(measure.column, values)
        if tests.pairs:
            complete = {label: found for label, found in values.items() if label in setting.eligible}
            best = leader(measure.column, complete or values)
            first = {best: values[best], **values}  # of equal means the first leads
            rank = "the best mean" + ("" if leader(measure.column, first) == best else " of those with all seeds")
            others = [label for label in values if label != best]
            told = verdict(tests, best, others, rank)
            verdicts.append((measure.column.title, "; ".join(filter(None, [told, searches(setting, values)]))))
            if against := tests.against(best):
                tables.append(table(f"{measure.column.title}: each method minus {best}, which has {rank}", tests,
                                    against, len(setting.seeds), best))
    return _by_verdict(verdicts), tuple(tables)


def searches(setting: Setting, labels: Iterable[str]) -> str:
    """Say which of the compared methods had their options searched, if not all were, and by as many candidates."""
    found = {m.label: m.searched for m in setting.methods if m.label in set(labels)}
    tried = {label: search.candidates for label, search in found.items() if search}
    if not tried or (len(tried) == len(found) and len(set(tried.values())) == 1):
        return ""
    others = [label for label in found if label not in tried]
    words = ", ".join(f"{label} (best of {number} candidates on validation samples)" for label, number in tried.items())
    unlike = f"not those of {', '.join(others)}" if others else "with different numbers of candidates"
    return f"options were searched of {words}, {unlike}: a difference between them is also that of the search"


def compare(setting: Setting, measures: Sequence[Measure], baseline: str | None) -> Compared:
    """Return the differences of all pairs of methods, or of each method to a baseline: verdicts and tables.

    References take part only as the baseline.
    """
    verdicts: list[tuple[str, str]] = []
    tables = []
    for measure in measures:
        title = measure.column.title
        values = setting.compared(measure, [baseline] if baseline else [])
        tests = family(measure.column, values, baseline)
        if (baseline is not None and baseline not in values) or not tests.pairs:
            verdicts.append((title, "nothing to compare" + (f" with {baseline}" if baseline else "")))
            continue
        if why := "; ".join(filter(None, [undecided(tests), searches(setting, values)])):
            verdicts.append((title, why))
        against = f"each method minus {baseline}" if baseline else "all pairs of methods"
        tables.append(table(f"{title}: {against}", tests, tests.pairs, len(setting.seeds), baseline))
    return _by_verdict(verdicts), tuple(tables)


def _by_verdict(verdicts: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return `metric: verdict` for each verdict, with all metrics that share it."""
    titles: dict[str, list[str]] = {}
    for title, text in verdicts:
        titles.setdefault(text, []).append(title)
    return tuple(f"{', '.join(sharing)}: {text}" for text, sharing in titles.items())
