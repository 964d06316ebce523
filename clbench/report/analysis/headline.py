"""The first lines of a section: the answer, what it costs, the best trade-offs, cautions and what to run next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clbench.core.errors import list_names
from clbench.report.analysis.advice import cautions, next_step
from clbench.report.analysis.families import NEAR, OTHER_DATA, SAME
from clbench.report.analysis.grouping import Setting
from clbench.report.columns import BYTES, COMPUTE, REPLAY, TRAINABLE, Measure
from clbench.report.decided import Against, Compared, Facts
from clbench.report.formatting import difference_unit, join_names, number, signed
from clbench.report.model import Cell, Column, Unit
from clbench.results.paired import MOST_SEEDS

Line = tuple[str, str]  # (topic, text)
ANSWER, COST, TRADE_OFFS, CAUTION, NEXT = "Answer", "Cost", "Best trade-offs", "Caution", "Next"
LEADS = {ANSWER: "", COST: "", TRADE_OFFS: "Best trade-offs", CAUTION: "Caution:", NEXT: "Next:"}
NAMES = 3  # names in a line; a longer list is cut
REFERENCES = 4  # names in the line of references
FRONTS = 4  # lines of trade-offs
WHY = {OTHER_DATA: "because they did not see the same data",
       SAME: "because every seed gave the same results",
       NEAR: "because {values} within three standard deviations (over seeds) of 100% are too skewed for a test"}
SIMILARITY_MARGIN = 0.1  # costs are treated as equal if they differ by a smaller share of the larger one


def headline(setting: Setting, facts: Facts) -> tuple[Line, ...]:
    """Return the first lines of a section, at most 13. Lines without content are left out."""
    lines = [(ANSWER, _answer(setting, facts)), (ANSWER, _references(setting, facts)), (COST, _cost(setting, facts)),
             *((TRADE_OFFS, text) for text in _trade_offs(setting, facts)),
             *((CAUTION, text) for text in cautions(setting)[0]),
             (NEXT, next_step(setting, facts))]
    return tuple((topic, text) for topic, text in lines if text)


def difference_column(setting: Setting, compared: Compared) -> tuple[Column, list[Cell]]:
    """Return the column of each method's difference to the baseline, with its verdict in a word."""
    pairs = {pair.method: pair for pair in compared.pairs}
    return (Column(f"difference to {compared.other}", _unit(setting)),
            [_cell(pairs.get(m.label), setting) for m in setting.methods])


def _unit(setting: Setting) -> Unit:
    return difference_unit(setting.final.column.unit)


def _cell(pair: Against | None, setting: Setting) -> Cell:
    """Return the cell of a pair. The verdict has the caution marks of the worse method."""
    if pair is None:
        return Cell("")
    loser = {"better": pair.other, "worse": pair.method}.get(pair.verdict, "")
    verdict = pair.verdict if pair.verdict != "open" else "not significant" if pair.test else "inconclusive"
    words = f"{verdict} {setting.cautions.get(loser, '')}".strip()
    return Cell(f"{signed(pair.difference, _unit(setting))} ({words})",
                pair.difference, pair.half_width, pair.seeds, low=pair.low, high=pair.high)


def _value(setting: Setting, facts: Facts, label: str) -> str:
    """Return the final mean of a method: `91.2%`. If it is not a percentage, the metric's name precedes it."""
    metric = setting.metric
    text = metric.text(facts.accuracy[label])
    return f"{text}%" if metric.is_share else f"{metric.label} {text}"


def _with_value(setting: Setting, facts: Facts, label: str) -> str:
    """Return a label with the final mean and the caution marks: `EWC (19.4%, ○)` or `ER (200) 36.1% (○)`."""
    value, marks = _value(setting, facts, label), facts.cautions.get(label, "")
    if label.endswith(")"):
        return f"{label} {value} ({marks})" if marks else f"{label} {value}"
    return f"{label} ({value}, {marks})" if marks else f"{label} ({value})"


def _answer(setting: Setting, facts: Facts) -> str:
    """Describe which method leads, whether that is certain, and which methods are not significantly worse."""
    methods = [label for label in facts.accuracy if label not in facts.references]
    best = facts.best
    if best is None:
        return _describe_unranked(setting, facts, methods)
    other_labels = [*best.beaten, *best.equal, *best.untested, *best.open, *best.inconclusive, *best.exceeding,
                    *best.dropped]
    leader = _with_value(setting, facts, best.method)
    incomplete = [label for label in (*best.open, *best.inconclusive, *best.exceeding)
                  if label not in setting.eligible]
    leads = "leads" if all(setting.metric.gain(facts.accuracy[best.method], facts.accuracy[label]) <= 0
                           for label in incomplete) else "leads the methods with all seeds"
    untested = {why: [label for label, reason in best.untested.items() if reason == why] for why in WHY}
    sentences = [f"{verb} {join_names(labels, NAMES)}{why}." for labels, verb, why in (
        ([label for label in best.equal if label in setting.eligible], "It equals", " on every seed"),
        ([label for label in best.equal if label not in setting.eligible], "It equals", " on shared seeds"),
        *((untested[why], "It is not tested against", f" {words.format(values=setting.metric.shares)}")
          for why, words in WHY.items()),
        (best.exceeding, f"{best.method} is significantly worse than", " on shared seeds"),
        (best.inconclusive, "There are too few seeds to compare it with", ""),
        (best.dropped, "Significantly worse than another method:",
         " (no more seeds were added)" if _stopped_early(setting, best.dropped) else "")) if labels]
    if not best.open:
        if not best.beaten:
            return " ".join([f"{leader} {leads}.", *sentences])
        beaten = (_with_value(setting, facts, best.beaten[0]) if len(other_labels) == 1
                  else _describe_others(len(best.beaten), len(other_labels), facts, best.beaten))
        return " ".join([f"{leader} is significantly better than {beaten}.", *sentences])
    needed = _needed(setting, facts, several=len(other_labels) > 1)
    if len(other_labels) == 1:
        return (f"{best.method} {_value(setting, facts, best.method)}, {best.open[0]} "
                f"{_value(setting, facts, best.open[0])}: "
                f"{'no significant difference' if best.test else 'inconclusive'}{needed}.")
    if not best.beaten:
        verb = f"{leads}, but " + (
            "one seed cannot show a difference" if len(setting.seeds) == 1 else
            "there are too few seeds to show a difference" if best.test is None else
            f"it is not significantly better than any of the {len(other_labels)} other methods")
        return " ".join([f"{leader} {verb}{needed}.", *sentences])
    verb = "is" if len(best.open) == 1 else "are"
    return " ".join([f"{leader} {leads}; it is significantly better than "
                     f"{_describe_others(len(best.beaten), len(other_labels), facts, best.beaten)}. "
                     f"{_open_names(setting, best.open)} {verb} not significantly worse{needed}.", *sentences])


def _stopped_early(setting: Setting, labels: Sequence[str]) -> bool:
    """Return whether a rule added no more seeds to some methods, while other methods got more."""
    counts = {label: len(by_seed) for label, by_seed in setting.values(setting.final).items()}
    return all(counts[label] < max(counts.values()) for label in labels)


def _describe_unranked(setting: Setting, facts: Facts, methods: Sequence[str]) -> str:
    """Name the methods of a setting in which fewer than two have a result for every seed. `methods` have some."""
    if len(methods) < 2:
        return "".join(f"{label} {_value(setting, facts, label)}." for label in methods)
    complete, partial = ([_with_value(setting, facts, label) for label in methods
                          if (label in setting.eligible) == flag] for flag in (True, False))
    if not complete:
        return f"No method has a result for every seed: {join_names(partial, NAMES)}."
    verb = "do" if len(partial) > 1 else "does"
    return f"Only {complete[0]} has a result for every seed; {join_names(partial, NAMES)} {verb} not."


def _open_names(setting: Setting, labels: Sequence[str]) -> str:
    """Name the methods that are not significantly worse. Untuned methods are marked if other methods were tuned."""
    methods = {m.label: m for m in setting.methods}
    some_tuned = any(m.searched and not m.reference for m in setting.methods)
    return join_names([f"{label} (not tuned)" if some_tuned and not methods[label].searched else label
                       for label in labels], NAMES)


def _describe_others(count: int, others: int, facts: Facts, labels: Sequence[str]) -> str:
    """Return the number of other methods, with the caution marks of some of them."""
    words = f"{count} of {others} other methods" if count < others else (
        "all other methods" if count > 2 else "both other methods")
    marked = [f"{label} {facts.cautions[label]}" for label in labels if label in facts.cautions]
    return f"{words}, including {join_names(marked, NAMES)}" if marked else words


def _needed(setting: Setting, facts: Facts, several: bool) -> str:
    """Return a remark on how many seeds would make the smallest difference significant. It begins with a space."""
    best = facts.best
    if facts.until or best is None or best.closest is None:
        return ""
    purpose = f" to separate {best.method} from the closest of them" if several else ""
    if best.limited:
        return f" ({best.limited:,} test samples are too few{purpose}, and more seeds will not help)"
    if several and best.needed:
        return f" (about {best.needed:,} seeds in total would be needed{purpose})"
    if best.needed is None:  # with a single shared seed, nothing can be estimated
        values = setting.values(setting.final)
        shared_seeds = values[best.method].keys() & values[best.closest].keys()
        return f" (more than {MOST_SEEDS:,} seeds would be needed)" if len(shared_seeds) > 1 else ""
    return f" (about {best.needed:,} seeds would be needed)"


def _references(setting: Setting, facts: Facts) -> str:
    """Name the references with their final means, and how many methods are better or worse than the baseline."""
    compared = [c.other for c in reversed(facts.compared) if c.other in facts.references]
    other_references = [label for label in facts.accuracy if label in facts.references and label not in compared]
    values = [f"{label} {_value(setting, facts, label)}" for label in [*compared, *other_references]]
    sentences = [f"References: {join_names(values, REFERENCES)}."] if values else []
    if facts.baseline is not None and len(facts.baseline.pairs) > 1:
        sentences.append(_compare_with(facts.baseline, setting))
    return " ".join(sentences)


def _compare_with(baseline: Compared, setting: Setting) -> str:
    """Return how many methods are better or worse than the baseline."""
    better, worse, total = baseline.labels("better"), baseline.labels("worse"), len(baseline.pairs)
    untested = baseline.labels("not tested")
    if len(untested) == total:
        reasons = dict.fromkeys(pair.untested for pair in baseline.pairs)
        why = " or ".join(WHY[reason].format(values=setting.metric.shares) for reason in reasons)
        return f"None of {total} methods is tested against {baseline.other} {why}."
    if baseline.test is None and baseline.labels("open"):
        return f"The comparisons with {baseline.other} are inconclusive."
    if len(better) == total:
        return f"{'Both' if total == 2 else f'All {total}'} methods are significantly better than {baseline.other}."
    return (f"Of {total} methods, {_count(better)} significantly better than {baseline.other}"
            + (f" and {_count(worse)} significantly worse." if worse else ".")
            + (f" {len(untested)} {'are' if len(untested) > 1 else 'is'} not tested." if untested else ""))


def _count(labels: Sequence[str]) -> str:
    return f"{len(labels) or 'none'} {'are' if len(labels) > 1 else 'is'}"


def _cost(setting: Setting, facts: Facts) -> str:
    """Compare the costs of the best method that stores no samples with the costs of the best method.

    If that is the same method, it is compared to the best other method that stores no samples and is cheaper in any
    cost.
    """
    if facts.best is None:
        return ""
    leader = facts.best.method
    leader_stores = bool(setting.mean(REPLAY, leader))
    for label in facts.accuracy:
        if label not in setting.eligible or label == leader or setting.mean(REPLAY, label) != 0:
            continue
        differences = _differences(setting, label, leader)
        better = [text for cheaper, text in differences if cheaper]
        worse = [text for cheaper, text in differences if not cheaper]
        if better or (leader_stores and worse):
            advantages = [*(["stores no samples"] if leader_stores else []), *better]
            drawback_clause = f", but {join_names(worse, NAMES)}" if worse else ""
            return (f"Compared with {leader}, {_with_value(setting, facts, label)} {join_names(advantages, NAMES + 1)}"
                    f"{drawback_clause}.")
    return ""


COSTS = ((TRAINABLE, "trains", "parameters per task"), (BYTES, "stores", "bytes"),
         (COMPUTE, "needs", "training compute"))  # the verb and the noun of a cost in a sentence


def _differences(setting: Setting, label: str, leader: str) -> list[tuple[bool, str]]:
    """Return, for each cost that differs, whether a method is cheaper than the leader and the difference in words."""
    differences = []
    for measure, verb, noun in COSTS:
        cost, leader_cost = setting.mean(measure, label), setting.mean(measure, leader)
        if cost is None or leader_cost is None or cost == leader_cost or (
                abs(cost - leader_cost) < SIMILARITY_MARGIN * max(cost, leader_cost)):
            continue
        if min(cost, leader_cost) == 0:
            differences.append((cost < leader_cost,
                                f"{verb} {number(cost, measure.column.unit) if cost else 'no'} {noun}"))
        else:
            differences.append((cost < leader_cost, f"{verb} {_ratio(cost / leader_cost, noun)}"))
    return differences


def _ratio(ratio: float, what: str) -> str:
    """Return a ratio of costs in words.

    >>> _ratio(1 / 55, "parameters per task"), _ratio(0.36, "bytes"), _ratio(4, "training compute")
    ('55 times fewer parameters per task', '64% less', '4.0 times as much training compute')
    >>> _ratio(0.004, "training compute")
    '250 times less training compute'
    """
    is_counted = what.startswith("parameters")
    what = "" if what == "bytes" else f" {what}"
    if ratio < 1:
        fewer = "fewer" if is_counted else "less"
        if ratio <= (1 / 3 if is_counted else 0.01):
            return f"{_times(1 / ratio)} times {fewer}{what}"
        return f"{100 * (1 - ratio):.0f}% {fewer}{what}"
    if ratio < 2:
        return f"{100 * (ratio - 1):.0f}% more{what}"
    return f"{_times(ratio)} times as {'many' if is_counted else 'much'}{what}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _trade_offs(setting: Setting, facts: Facts) -> Iterator[str]:
    """Yield the Pareto front of each cost and the metric, best method first. Costs with the same front share a line."""
    measures = {m.column.title: m for m in setting.measures}
    costs: dict[tuple[str, ...], list[str]] = {}
    for title, labels in facts.fronts.items():
        if labels:
            costs.setdefault(labels, []).append(measures[title].column.name + _without_zeros(setting, measures[title]))
    for labels, titles in list(costs.items())[:FRONTS]:
        descriptions = [_with_value(setting, facts, label) for label in reversed(labels)]  # the cheapest last
        most = NAMES + (len(labels) == NAMES + 1)  # "and 1 more" is no shorter than a name
        words = join_names(titles, len(titles))
        yield f"of {setting.metric.label} against {words}: {list_names(descriptions, most)}."


def _without_zeros(setting: Setting, measure: Measure) -> str:
    """Return a remark if methods are not on the Pareto front of a cost because they have none of it."""
    if measure.zero_competes or all(setting.mean(measure, label) for label in setting.eligible):
        return ""
    return " (of methods that train any)"
