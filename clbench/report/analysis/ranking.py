"""Methods ranked across the settings of a report: average ranks, the tests of them, and their figure as data."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from clbench.report.analysis.grouping import Setting
from clbench.report.columns import ACC
from clbench.report.formatting import in_words, number
from clbench.report.model import Cell, Column, FigureData, FigurePoint, Row, Table
from clbench.results.stats import ALPHA, Ranks, rank_methods, settings_needed

LEAST_METHODS, LEAST_SETTINGS = 3, 2
_TITLE = "Average ranks"


def ranking(settings: Sequence[Setting]) -> tuple[tuple[Table, ...], tuple[str, ...], tuple[FigureData, ...]] | None:
    """Rank the methods with a result for every seed of every setting by mean ACC; return table, verdicts and figure.

    Return None if ranks would be meaningless: with fewer than three such methods, with settings that share a benchmark
    and so are not independent, or with fewer settings than the test needs. Methods are matched by their ids.
    """
    if len(settings) < LEAST_SETTINGS or len({str(s.records[0].trial.benchmark) for s in settings}) < len(settings):
        return None
    by_id = [{m.id: m.label for m in s.methods if m.label in s.eligible} for s in settings]
    ids = [id_ for id_ in by_id[0] if all(id_ in there for there in by_id)]
    labels = [by_id[0][id_] for id_ in ids]
    if len(labels) < LEAST_METHODS or len(settings) < settings_needed(len(labels)):
        return None
    means = [{label: fmean(values.values()) for label, values in setting.compared(ACC).items()} for setting in settings]
    ranks = rank_methods([[by_label[there[id_]] for id_ in ids]
                          for by_label, there in zip(means, by_id, strict=True)])
    left_out = dict.fromkeys(m.label for s in settings for m in s.methods if not m.reference and m.id not in ids)
    verdicts = list(_verdicts(labels, ranks, len(settings)))
    if left_out:
        verdicts.append(f"Not ranked, because some setting lacks a result of some seed: {', '.join(left_out)}")
    return (_table(settings, labels, ranks),), tuple(verdicts), (_figure(settings, labels, ranks),)


def better(ranks: Ranks, first: int, second: int) -> bool:
    """Return whether the first method's average rank is significantly better than the second's."""
    return ranks.p <= ALPHA and ranks.average[second] - ranks.average[first] > ranks.critical


def _table(settings: Sequence[Setting], labels: Sequence[str], ranks: Ranks) -> Table:
    rows = [Row(setting.title, tuple(Cell(f"{rank:g}", rank) for rank in setting_ranks))
            for setting, setting_ranks in zip(settings, ranks.ranks, strict=True)]
    k = range(len(labels))
    winners = {i for i in k if all(better(ranks, i, j) for j in k if j != i)}
    rows.append(Row("average rank", tuple(Cell(number(rank, "number"), rank, n=len(settings), bold=i in winners)
                                          for i, rank in enumerate(ranks.average))))
    return Table("Ranks by accuracy (1 is the best)", tuple(Column(label, "number") for label in labels), tuple(rows),
                 corner="setting")


def _verdicts(labels: Sequence[str], ranks: Ranks, settings: int) -> Sequence[str]:
    test = f"Friedman's test of {len(labels)} methods over {settings} settings: p = {ranks.p:.2g}"
    if ranks.p > ALPHA:
        return [f"{test}. There is no significant difference between the average ranks"]
    behind = [(a, [b for j, b in enumerate(labels) if better(ranks, i, j)]) for i, a in enumerate(labels)]
    pairs = "; ".join(f"{a} ranks significantly better than {in_words(others)}" for a, others in behind if others)
    return [f"{test}. The average ranks differ significantly. With a critical difference of {ranks.critical:.2f} "
            f"(Nemenyi), {pairs or 'no pair of methods differs significantly'}"]


def _figure(settings: Sequence[Setting], labels: Sequence[str], ranks: Ranks) -> FigureData:
    strategies = {m.label: m.strategy for m in settings[0].methods}
    points = sorted((FigurePoint(label, strategies[label], False, True, None, None, None, (), rank)
                     for label, rank in zip(labels, ranks.average, strict=True)), key=lambda p: p.rank or 0)
    average_ranks = "; ".join(f"{p.label} {number(p.rank or 0, 'number')}" for p in points)
    return FigureData(
        "critical-difference", "critical-difference", _TITLE,
        f"Accuracy in {len(settings)} settings; Friedman p = {ranks.p:.2g}",
        f"Average ranks over {len(settings)} settings: {average_ranks}. Critical difference {ranks.critical:.2f}.",
        "Average rank by accuracy over the settings; 1 is the best. A bar joins methods whose ranks are not "
        f"significantly different (Nemenyi, {100 * ALPHA:g}%). The line at the top is as long as the critical "
        "difference.", tuple(points), critical=ranks.critical)
