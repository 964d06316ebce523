"""All possible outcomes of a choice under constraints, so that a page can choose as `choosing.choose` does."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.core.scenario import scenario_rules
from clbench.report.analysis.choosing import KINDS, rival_of, values_of
from clbench.report.analysis.families import Family
from clbench.report.analysis.grouping import Setting
from clbench.report.columns import ACC
from clbench.report.decided import Candidate, CandidateComparison, Choosable


def choosable(setting: Setting, everything: Family | None = None) -> Choosable | None:
    """Return the methods of a setting that can be chosen, or None if there are fewer than two.

    The chosen method is the best one that the constraints allow. So of each pair, only the method with the higher mean
    can be chosen.

    Args:
        setting: the setting of the methods.
        everything: the tests of ACC of all pairs, if they are already known.
    """
    accuracies = {label: by_seed for label, by_seed in setting.compared(ACC).items() if label in setting.eligible}
    if len(accuracies) < 2:
        return None
    over = {label: setting.interval(ACC, label) for label in accuracies}
    counted = {kind.name: values_of(setting, kind) for kind in KINDS}
    known = everything if _same(everything, [*accuracies]) else None
    tests = known or setting.tests(ACC, accuracies)
    # Of equal ones the first leads, as in `leader`; what a rule has dropped leads none that it has not.
    order = sorted(accuracies, key=lambda label: (label in tests.dropped, -over[label].mean))
    pairs = {}
    for pair in tests.pairs:
        ahead = min(pair.first, pair.second, key=order.index)
        behind = pair.swapped if pair.first == ahead else pair
        rival = rival_of(behind, accuracies, setting)
        pairs[ahead, behind.first] = CandidateComparison(
            rival.difference, rival.half_width, rival.shown, rival.needed, rival.untested)
    return Choosable(
        scenario_rules(setting.records[0].trial.scenario).task_given,
        tuple(Candidate(label, over[label].mean, over[label].half_width,
                        {name: values.get(label) for name, values in counted.items()},
                        setting.cautions.get(label, "")) for label in order),
        tuple(tuple(pairs[a, b] for b in order[i + 1:]) for i, a in enumerate(order)),
        tuple(m.label for m in setting.methods if not m.reference and m.label not in accuracies))


def _same(tests: Family | None, labels: Sequence[str]) -> bool:
    """Return whether the tests are those of all pairs of these methods and of no others."""
    return tests is not None and {*labels} == {label for pair in tests.pairs for label in (pair.first, pair.second)}
