"""The first lines of a section: the answer, what it costs, the best trade-offs, cautions and what to run next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from clbench.report.analysis.cautions import cautions
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.next_step import next_step
from clbench.report.columns import BYTES, COMPUTE, MEASURES, REPLAY, TRAINABLE, Measure
from clbench.report.decided import Against, Compared, Facts
from clbench.report.formatting import in_words, named, number
from clbench.report.model import Cell, Column
from clbench.results.paired import MOST_SEEDS

Line = tuple[str, str]  # what it is about, and what it says
ANSWER, COST, TRADE_OFFS, CAUTION, NEXT = "Answer", "Cost", "Best trade-offs", "Caution", "Next"
LEADS = {ANSWER: "", COST: "", TRADE_OFFS: "Best trade-offs by", CAUTION: "Caution:", NEXT: "Next:"}
NAMES = 3  # that a line names; of more it says how many
FRONTS = 4  # lines of trade-offs
HEADINGS = {measure.column.title: measure.column.name for measure in MEASURES}
ALIKE = 0.1  # two costs that differ by less are called the same


def headline(setting: Setting, facts: Facts) -> tuple[Line, ...]:
    """Return the first lines of a section, 13 at most; those about nothing are left out."""
    lines = [(ANSWER, _answer(setting, facts)), (ANSWER, _references(facts)), (COST, _cost(setting, facts)),
             *((TRADE_OFFS, text) for text in _trade_offs(facts)),
             *((CAUTION, text) for text in cautions(setting)),
             (NEXT, next_step(setting, facts))]
    return tuple((about, text) for about, text in lines if text)


def difference_column(setting: Setting, compared: Compared) -> tuple[Column, list[Cell]]:
    """Return the column of each method's difference to the baseline, with its verdict in a word."""
    pairs = {pair.method: pair for pair in compared.pairs}
    return (Column(f"difference to {baseline_name(setting, compared)}", "points"),
            [_cell(pairs.get(m.label)) for m in setting.methods])


def baseline_name(setting: Setting, compared: Compared) -> str:
    """Return what a column calls the baseline: the name of its strategy if it has no options, else its label."""
    method = next(m for m in setting.methods if m.label == compared.other)
    return method.strategy if method.id == method.strategy else method.label


VERDICTS = {"better": "better", "worse": "worse", "equal": "equal", "open": "not significant"}


def _cell(pair: Against | None) -> Cell:
    if pair is None:
        return Cell("")
    return Cell(f"{100 * pair.difference:+.1f} ({VERDICTS[pair.verdict]})", pair.difference, pair.half_width,
                pair.seeds, low=pair.low, high=pair.high)


def _percent(facts: Facts, label: str) -> str:
    return f"{100 * facts.accuracy[label]:.1f}%"


def _with_accuracy(facts: Facts, label: str) -> str:
    return f"{label} ({_percent(facts, label)})"


def _answer(setting: Setting, facts: Facts) -> str:
    """Say which method leads, whether that is certain, and which methods are not significantly worse."""
    methods = [label for label in facts.accuracy if label not in facts.references]
    best = facts.best
    if best is None:
        return "; ".join(f"{label} {_percent(facts, label)}" for label in methods[:1]) + "." * bool(methods[:1])
    others = [*best.beaten, *best.equal, *best.open]
    leader = _with_accuracy(facts, best.method)
    if not best.open and not best.beaten:
        return f"{leader} and {in_words(best.equal, NAMES)} have equal results on every seed."
    if not best.open:
        equal = f" Equal on every seed: {in_words(best.equal, NAMES)}." if best.equal else ""
        if len(best.beaten) == 1:
            return f"{leader} is significantly better than {_with_accuracy(facts, best.beaten[0])}.{equal}"
        return f"{leader} is significantly better than {_all(len(best.beaten), len(others))}.{equal}"
    needed = _needed(setting, facts)
    if len(others) == 1:
        return (f"{best.method} {_percent(facts, best.method)}, {best.open[0]} {_percent(facts, best.open[0])}: "
                f"{'inconclusive' if len(setting.seeds) == 1 else 'no significant difference'}{needed}.")
    if not best.beaten:
        verb = "leads, but one seed cannot show a difference" if len(setting.seeds) == 1 else (
            f"leads, but it is not significantly better than any of the {len(others)} other methods")
        return f"{leader} {verb}{needed}."
    open_ = _open_names(setting, best.open)
    verb = "is" if len(best.open) == 1 else "are"
    return (f"{leader} leads; it is significantly better than {len(best.beaten)} of {len(others)} methods. {open_} "
            f"{verb} not significantly worse{needed}.")


def _open_names(setting: Setting, labels: Sequence[str]) -> str:
    """Name the methods that are not significantly worse; those that were not tuned while others were are marked."""
    methods = {m.label: m for m in setting.methods}
    some_tuned = any(m.searched for m in setting.methods)
    return in_words([f"{label} (untuned)" if some_tuned and not methods[label].searched else label
                     for label in labels], NAMES)


def _all(count: int, others: int) -> str:
    return f"all {count} other methods" if count == others else f"{count} of {others} methods"


def _needed(setting: Setting, facts: Facts) -> str:
    """Say about how many seeds would show the nearest difference; in parentheses, with a space before."""
    best = facts.best
    if facts.until or best is None:
        return ""
    if best.needed is None:
        return f" (more than {MOST_SEEDS:,} seeds would be needed)" if len(setting.seeds) > 1 else ""
    return f" (about {best.needed:,} seeds would be needed)"


def _references(facts: Facts) -> str:
    """Name the references with their accuracies, and how many methods are better or worse than fine-tuning."""
    if not facts.references:
        return ""
    shown = [f"{label} {_percent(facts, label)}" for label in facts.accuracy if label in facts.references]
    text = f"References: {in_words(shown, NAMES)}."
    baseline = facts.baseline
    if baseline and baseline.pairs and len(facts.accuracy) - len(facts.references) > 1:
        better, worse, of = baseline.labels("better"), baseline.labels("worse"), len(baseline.pairs)
        text += f" Of {of} methods, {len(better)} {_are(better)} significantly better than {baseline.other}"
        text += f" and {len(worse)} significantly worse." if worse else "."
    return text


def _are(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"


def _cost(setting: Setting, facts: Facts) -> str:
    """Compare the costs of the best method that stores no samples with those of the most accurate one.

    If that is the same method, the best of the others is taken that is cheaper in anything.
    """
    if facts.best is None:
        return ""
    leader = facts.best.method
    ranked = [label for label in facts.accuracy if label in setting.eligible and label != leader]
    for label in ranked:
        stored = _mean(setting, REPLAY, label)
        parts = _differences(setting, label, leader)
        if stored == 0 and any(cheaper for cheaper, _ in parts):
            better = [text for cheaper, text in parts if cheaper]
            worse = [text for cheaper, text in parts if not cheaper]
            but = f", but {in_words(worse, NAMES)}" if worse else ""
            return f"Compared with {leader}, {label} {in_words(better, NAMES)}{but}."
    return ""


def _mean(setting: Setting, measure: Measure, label: str) -> float | None:
    values = list(setting.values(measure).get(label, {}).values())
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


COSTS: tuple[tuple[Measure, str, str, str], ...] = (  # verb, what is less or more of it in times and in percent
    (TRAINABLE, "trains", "parameters per task", "parameters per task"),
    (BYTES, "stores", "bytes", ""), (COMPUTE, "needs", "training compute", "training compute"))


def _differences(setting: Setting, label: str, leader: str) -> list[tuple[bool, str]]:
    """Return whether a method is cheaper than the leader, and by how much in words, for each cost that differs."""
    parts = []
    for measure, verb, of_times, of_percent in COSTS:
        own, other = _mean(setting, measure, label), _mean(setting, measure, leader)
        if own is None or other is None or max(own, other) == 0 or abs(own - other) < ALIKE * max(own, other):
            continue
        cheaper = own < other
        if min(own, other) == 0:
            what = f"no {of_times}" if cheaper else f"{number(own, measure.column.unit)} {of_times}"
        else:
            what = _ratio(other / own if cheaper else own / other, cheaper, of_times, of_percent,
                          measure.column.unit == "count")
        parts.append((cheaper, f"{verb} {what}"))
    return parts


def _ratio(times: float, cheaper: bool, of_times: str, of_percent: str, counted: bool) -> str:
    """Return `55 times fewer parameters per task`, `64% less training compute` or `3.2 times more bytes`."""
    word = ("fewer" if counted else "less") if cheaper else "more"
    if times >= 3:
        return f"{times:.0f} times {word} {of_times}" if times >= 10 else f"{times:.1f} times {word} {of_times}"
    share = 100 * (1 - 1 / times if cheaper else times - 1)
    return " ".join(filter(None, [f"{share:.0f}% {word}", of_percent]))


def _trade_offs(facts: Facts) -> Iterator[str]:
    """Yield the Pareto front of accuracy against each cost, cheapest first; costs with the same front share a line."""
    costs: dict[tuple[str, ...], list[str]] = {}
    for title, labels in facts.fronts.items():
        if labels:
            costs.setdefault(labels, []).append(HEADINGS[title])
    for labels, titles in list(costs.items())[:FRONTS]:
        shown = [_with_accuracy(facts, label) for label in labels]
        yield f"{in_words(titles, len(titles))}: {named(shown, NAMES)}."
