"""Methods compared in pairs, seed by seed: the tests behind bold numbers, tables of differences, and verdicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from clbench.experiment.until import UntilDecided
from clbench.report.analysis.families import NEAR, OTHER_DATA, SAME, Family, PairedTest, leader
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.method_records import CHANCE, MARKS, UNDERFIT
from clbench.report.columns import Measure
from clbench.report.formatting import NONE, difference_unit, interval, join_names, number, plural
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.paired import Test
from clbench.results.stats import ALPHA, EXACT_TO, effect_size


def searches(setting: Setting, labels: Iterable[str]) -> str:
    """Describe which of the compared methods were tuned, unless all were tuned with the same number of candidates."""
    search_of = {m.label: m.searched for m in setting.methods if m.label in set(labels)}
    candidate_counts = {label: search.candidates for label, search in search_of.items() if search}
    if not candidate_counts or (len(candidate_counts) == len(search_of) and len(set(candidate_counts.values())) == 1):
        return ""
    untuned = [label for label in search_of if label not in candidate_counts]
    words = join_names([f"{label} ({number} candidates)" for label, number in candidate_counts.items()])
    contrast = (f"{join_names(untuned)} {'was' if len(untuned) == 1 else 'were'} not, so" if untuned else
                "with different numbers of candidates, so")
    return f"Tuned on validation samples: {words}; {contrast} differences may reflect the tuning"


def winners(setting: Setting, measure: Measure, tests: Family | None = None) -> set[str]:
    """Return the significantly best method and its equals, or nothing if no method is significantly best.

    Args:
        setting: the setting whose methods are compared. Only methods with a result for every seed may win.
        measure: the measure. Its direction says which value is better.
        tests: the tests of all pairs, if they are already known.
    """
    column, values = measure.column, setting.compared(measure)
    running = {label: by_seed for label, by_seed in values.items() if label in setting.eligible}
    if len(running) < 2:
        return set()
    best = leader(column, running, tests)
    if tests is None:
        best_tests = setting.tests(measure, values, best, len(values) * (len(values) - 1) // 2)
        if setting.until is None and not all(p.equal or p.p <= ALPHA for p in best_tests.pairs if p.first in running):
            return set()  # a pair that is not significant alone is not significant after correction
        tests = setting.tests(measure, values)
        best = leader(column, running, tests)
    pairs = [pair for pair in tests.against(best) if pair.first in running]
    equal = {pair.first for pair in pairs if pair.equal}
    unequal = {pair.first for pair in pairs} - equal
    return {best, *equal} if unequal and unequal <= tests.beaten_by(best) else set()


def table(title: str, tests: Family, pairs: Sequence[PairedTest], setting: Setting,
          baseline: str | None = None) -> Table:
    """Return the table of some of a family's pairs.

    Args:
        title: the title of the table.
        tests: the family.
        pairs: the pairs, one for each row.
        setting: the setting of the methods. Pairs with fewer seeds than the setting say so (`5 of 6`).
        baseline: the second method of every pair, if it is always the same. Rows then have the first method's name.
    """
    unit = difference_unit(tests.column.unit)
    columns = (Column("seeds", "text"), Column("difference", unit), Column("test", "text"), Column("p", "number"),
               Column(f"p, corrected for {len(tests.pairs)}", "number"), Column("effect size", "number"),
               Column("verdict", "text"))
    rows = []
    for pair in pairs:
        estimate, effect, n = pair.interval, effect_size(pair.differences), pair.interval.n
        rows.append(Row(pair.first if baseline else f"{pair.first} minus {pair.second}", (
            Cell(str(n) if n == len(setting.seeds) or pair.until else f"{n} of {len(setting.seeds)}"),
            Cell(interval(estimate.mean, estimate.half_width, unit), estimate.mean, estimate.half_width, n,
                 low=estimate.low, high=estimate.high),
            Cell(TESTS[pair.test] if pair.test else NONE),
            *(Cell(f"{p:.2g}", p, n=n) if pair.test else Cell(NONE, n=n) for p in (pair.p, pair.corrected)),
            Cell(NONE, n=n) if effect is None else Cell(number(effect, "number"), effect, n=n),
            Cell(_verdict(pair, tests.column.direction, baseline, setting)))))
    return Table(title, columns, tuple(rows), corner="method" if baseline else "pair")


TESTS: Mapping[Test, str] = {"flips": "sign flips", "t": "paired t", "crossed": "t, seeds and samples",
                             "sequential": "sequential t"}


def _verdict(pair: PairedTest, direction: str | None, baseline: str | None, setting: Setting) -> str:
    if pair.equal:
        return "equal on every seed" if len(pair.differences) == len(setting.seeds) else "equal on shared seeds"
    if pair.untested:
        return f"not tested: {pair.untested}"
    if not pair.decidable:
        return "inconclusive"
    if not pair.significant:
        return "no significant difference"
    winner = pair.better(direction)
    mark = setting.cautions.get(pair.second if winner == pair.first else pair.first, "")
    if baseline:
        return f"significantly {'better' if winner == pair.first else 'worse'} {mark}".strip()
    return f"{winner} is significantly better {mark}".strip()


def explain_untested(tests: Family) -> str | None:
    """Explain why no pair can be tested (one seed, or equal results on all seeds). Return None if some pair can."""
    if any(pair.decidable for pair in tests.pairs):
        return None
    if reasons := dict.fromkeys(pair.untested for pair in tests.pairs if pair.untested):
        return f"is not tested: {', or '.join(reasons)}"
    if (until := tests.until) is not None:
        return f"is inconclusive before {until.first} seeds"
    return "is inconclusive with 1 seed; use several seeds"


def basis(tests: Family, shares: str, against: str = "") -> str:
    """Describe which test a family uses and what it assumes.

    Args:
        tests: the family.
        shares: the name of the percentages, such as accuracies.
        against: the method to which all others are compared, if not all pairs are compared.
    """
    size, pairs = len(tests.pairs), tests.pairs
    by_t = [len(pair.differences) for pair in pairs if pair.test == "t"]
    crossed = [len(pair.differences) for pair in pairs if pair.test == "crossed"]
    flips = [len(pair.differences) for pair in pairs if pair.test == "flips"]
    scope = f"{plural(size, 'comparison')} " + (f"with {against}" if against else "between pairs of methods")
    sentences = []
    if tests.until:
        analyses = describe_interim_analyses(tests.until)
        sentences.append(f"Sequential t-tests, Holm-corrected over {scope}, with {analyses}")
    if flips:
        sentences.append(f"{flips_name(max(flips)).capitalize()}, Holm-corrected over {scope}, with {_range(flips)}")
    if by_t:
        sentences.append(f"Paired t-tests, Holm-corrected over {scope}, because {_range(by_t)} are too few for "
                         "sign-flip tests. They assume normally distributed differences")
    if crossed:
        sentences.append(f"t-tests over {_range(crossed)} and the test samples that they share, Holm-corrected over "
                         f"{scope}. They assume normally distributed effects")
    if any(pair.untested == NEAR for pair in pairs):
        sentences.append(f"{shares.capitalize()} near 100% are not tested")
    return ". ".join(sentences)


def flips_name(seeds: int) -> str:
    """Return the name of the sign-flip tests of so many seeds."""
    return "exact sign-flip tests" if seeds <= EXACT_TO else "sign-flip tests with random signs"


def describe_interim_analyses(until: UntilDecided) -> str:
    """Describe the interim analyses that a rule for adding seeds allows."""
    return (f"an interim analysis after each seed from {until.first} to at most {until.most}, valid whenever one stops "
            "if the rule was chosen before the first (Jennison & Turnbull 1991)")


def _range(seeds: Sequence[int]) -> str:
    low, high = min(seeds), max(seeds)
    return f"{low} seeds" if low == high else f"{low} to {high} seeds"


def verdict(tests: Family, best: str, others: Collection[str], rank: str, setting: Setting) -> str:
    """Describe how the method with the best mean compares with each of the others.

    Args:
        tests: a family with at least one pair.
        best: the method with the best mean.
        others: all other methods that are compared, including those that share no seed with it.
        rank: the rank of its mean in words, such as "the best mean".
        setting: the setting of the methods.
    """
    if (reason := explain_untested(tests)) is not None:
        return f"Which method is best {reason}"
    pairs = tests.against(best)
    beaten = tests.beaten_by(best)
    better = [p.first for p in pairs if p.first in beaten]
    worse = [p.first for p in pairs if p.significant and p.first not in beaten]
    partial = {p.first for p in pairs if len(p.differences) < len(setting.seeds)}
    if len(better) == len(others):
        start = "" if best in setting.eligible else "On shared seeds, "
        cautioned = [setting.mark_label(name) for name in better if name in setting.cautions]
        return f"{start}{best} is significantly better than every other method" + (
            f" ({join_names(cautioned)})" if cautioned else "")
    groups = [("It is significantly better than", list(map(setting.mark_label, better))),
              ("On shared seeds, it is significantly worse than", worse),
              ("On every seed, it equals", [p.first for p in pairs if p.equal and p.first not in partial]),
              ("On shared seeds, it equals", [p.first for p in pairs if p.equal and p.first in partial]),
              ("There is no significant difference to",
               [p.first for p in pairs if p.decidable and not p.significant and not p.equal and p.first not in beaten]),
              *((words, [p.first for p in pairs if p.untested == reason]) for reason, words in (
                  (OTHER_DATA, "It is not tested against methods that did not see the same data:"),
                  (SAME, "It is not tested against methods with the same results on every seed:"),
                  (NEAR, f"Because of {setting.metric.shares} near 100%, it is not tested against"))),
              ("There are too few seeds to compare it with",
               [p.first for p in pairs if not (p.decidable or p.equal or p.untested)]),
              ("It has no seed in common with", [name for name in others if name not in {p.first for p in pairs}])]
    return ". ".join([f"{best} has {rank}", *(f"{words} {join_names(names)}" for words, names in groups if names)])


Compared = tuple[tuple[str, ...], tuple[Table, ...]]  # verdicts, a table per measure


def all_pairs(setting: Setting) -> dict[Measure, Family]:
    """Return the tests of all pairs of methods for each measure that reports test."""
    return {m: setting.tests(m, setting.compared(m)) for m in setting.measures if m.in_report}


def compare_with_best(setting: Setting, families: Mapping[Measure, Family]) -> Compared:
    """Return verdicts and tables on the differences of methods to the best one, for each measure that reports test.

    The same data decide which method is best, so p-values are corrected over all pairs (`all_pairs`).
    """
    verdicts: list[tuple[str, str]] = []
    tables = []
    for measure, tests in families.items():
        values = setting.compared(measure)
        if tests.pairs:
            complete = {label: by_seed for label, by_seed in values.items() if label in setting.eligible}
            best = leader(measure.column, complete or values, tests)
            highest = leader(measure.column, {best: values[best], **values})  # the first of equal means
            group = ("" if highest == best else " of the methods with all seeds" if not setting.until else
                     " of the methods that are not significantly worse than another one")
            rank = f"the best mean{group}"
            other_labels = [label for label in values if label != best]
            sentence = verdict(tests, best, other_labels, rank, setting)
            verdicts.append((measure.column.name, sentence))
            if best_pairs := tests.against(best):
                title = f"{_sentence(measure.column.name)}: each method minus {best}, which has {rank}"
                tables.append(table(title, tests, best_pairs, setting, best))
    return _group_by_verdict(verdicts), tuple(tables)


def compare_with_baseline(setting: Setting) -> tuple[Table, ...]:
    """Return the differences of methods to the setting's baseline, a table for each measure that reports test."""
    baseline = setting.baseline
    return compare(setting, [m for m in setting.measures if m.in_report], baseline)[1] if baseline else ()


def compare(setting: Setting, measures: Sequence[Measure], baseline: str | None) -> Compared:
    """Return verdicts and tables on the differences of all pairs of methods or of each method to a baseline.

    References take part only as the baseline, or if there is a single method, which is compared to each of them. If
    the setting lacks the baseline, the verdict says so.
    """
    verdicts: list[tuple[str, str]] = []
    tables = []
    for measure in measures:
        title = measure.column.name
        values = setting.compared(measure, [baseline] if baseline else [])
        if baseline is not None and baseline not in values:
            verdicts.append((title, _explain_missing(setting, baseline)))
            continue
        tests = setting.tests(measure, values, baseline)
        title_end, opponents = (f"each method minus {baseline}", baseline) if baseline else ("all pairs of methods", "")
        if baseline is None and len(values) == 1:
            (method,), values = values, setting.compared(measure, [m.label for m in setting.methods])
            tests = setting.tests(measure, values, method)
            tests = replace(tests, pairs=tuple(pair.swapped for pair in tests.pairs))
            title_end, opponents = f"{method} minus each reference", "each reference"
        if not tests.pairs:
            verdicts.append((title, "There is nothing to compare" + (f" with {baseline}" if baseline else "")))
            continue
        reason = explain_untested(tests)
        explanation = f"The comparison {reason}" if reason else basis(tests, setting.metric.shares, opponents)
        verdicts.append((title, ". ".join(filter(None, [explanation, searches(setting, values)]))))
        tables.append(table(f"{_sentence(title)}: {title_end}", tests, tests.pairs, setting, baseline))
    return (*_group_by_verdict(verdicts), *_legend(setting, tables)), tuple(tables)


def _legend(setting: Setting, tables: Sequence[Table]) -> list[str]:
    """Explain the marks in tables of pairs and name the methods that have them."""
    rows = chain.from_iterable(pair_table.rows for pair_table in tables)
    cells = "".join(row.cells[-1].text for row in rows)
    return [f"{mark} {MARKS[mark]}: {join_names([label for label, marks in setting.cautions.items() if mark in marks])}"
            for mark in (UNDERFIT, CHANCE) if mark in cells]


def _explain_missing(setting: Setting, baseline: str) -> str:
    """Explain why no method can be compared to a baseline without values of a measure."""
    method = next((m for m in setting.methods if m.label == baseline), None)
    if method is None:
        return f"Nothing is compared here, because the baseline {baseline} was not run in this setting"
    if not method.done:
        return f"Nothing is compared here, because no trial of the baseline {baseline} gave a result"
    return f"Nothing is compared here, because the baseline {baseline} lacks this metric on some seed"


def _group_by_verdict(verdicts: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return `metric: verdict` for each verdict, with all metrics that share it."""
    titles: dict[str, list[str]] = {}
    for title, text in verdicts:
        titles.setdefault(text, []).append(title)
    return tuple(f"{_sentence(', '.join(metric_titles))}: {text}" for text, metric_titles in titles.items())


def _sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
