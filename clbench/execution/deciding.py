"""What `--until decided` plans: the seeds in their order, the rule, what is open, and the trials of the next round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clbench.core.errors import SpecError, unknown
from clbench.experiment.spec import Spec
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.until import BEST, FIRST, UntilDecided, sequence
from clbench.report.analysis.families import SAME, Pair, family
from clbench.report.analysis.grouping import Setting, by_setting
from clbench.report.columns import ACC
from clbench.report.formatting import listed
from clbench.results.records import Record
from clbench.results.store import Store

EQUAL = 5  # seeds on which two methods are equal to the last digit, or give one result each: no more are trained


@dataclass(frozen=True)
class State:
    """A setting after a round: what is decided, and what is open."""

    scenario: str
    question: str  # in words
    decided: Mapping[str, str]  # verdict by method
    open: tuple[str, ...]  # labels of the methods that would need more seeds
    partner: str | None  # the baseline, which needs the same seeds


def rule_of(spec: Spec, labels: Sequence[str]) -> UntilDecided:
    """Return the rule that an experiment asks for.

    Raises:
        SpecError: it has too few seeds at first or at most, or a baseline that is none of its methods.
    """
    if spec.baseline not in (None, BEST, *labels):
        raise SpecError(f"--baseline: {unknown('method', spec.baseline or '', [*labels, BEST], 'clbench methods')}")
    if len(spec.seeds) < FIRST:
        raise SpecError(f"--until decided starts with at least {FIRST} seeds, got --seeds "
                        f"{listed(list(spec.seeds))}: leave --seeds out, which means {FIRST}, or give more")
    if spec.max_seeds < len(spec.seeds):
        raise SpecError(f"--max-seeds {spec.max_seeds} is less than the {len(spec.seeds)} seeds to start with "
                        "(--seeds): give more")
    if len(labels) < 2:
        raise SpecError("--until decided compares methods: name at least two")
    return UntilDecided(baseline=spec.baseline, first=len(spec.seeds), most=spec.max_seeds)


def begin(spec: Spec, whole: Sequence[PlannedTrial], out: Path, shard: str | None) -> list[PlannedTrial]:
    """Return the trials with which a run begins: the first seeds, and those that its folder has beyond them.

    Args:
        spec: the experiment.
        whole: its trials of the first seeds.
        out: the run folder.
        shard: must be None.

    Raises:
        SpecError: it cannot be run by such a rule, or the folder has results by another one, or of other seeds.
    """
    if shard is not None:
        raise SpecError("--shard and --until do not go together: which seeds are run depends on the results of all "
                        "(several machines can share a run folder: start the same command on each)")
    rule = rule_of(spec, list(dict.fromkeys(p.label for p in whole)))
    records, _ = Store(out).read()
    seeds = sequence(spec.seeds, rule.most)
    settings = {p.trial.setting for p in whole}
    own = [r for r in records if r.trial.setting in settings]
    if others := {str(r.until) for r in own if r.until and r.until != rule}:
        raise SpecError(f"the results in {out} were made by {' and '.join(sorted(others))}, but this run has {rule}. A "
                        "rule must stay the same after its first interim analysis: use the earlier one, or start in "
                        "another folder (--out) with other seeds (such as --seeds 100,101,102)")
    if strangers := sorted({r.trial.seed for r in own} - set(seeds)):
        raise SpecError(f"{out} has results of seed {listed(strangers)}, and this rule takes {listed(seeds)}, in their "
                        "order: choose another --out")
    known, begun = {r.key for r in records}, [replace(p, until=rule) for p in whole]
    more = list(_with_seeds(begun, seeds[rule.first:]))
    last: dict[tuple[tuple[str, ...], str], int] = {}  # the seed with which each row has been begun
    for one in more:
        if one.trial.key in known:
            last[one.trial.setting, one.trial.row] = one.trial.seed
    return [*begun, *(p for p in more if p.trial.seed <= last.get((p.trial.setting, p.trial.row), -1))]


def most(spec: Spec, whole: Sequence[PlannedTrial]) -> int:
    """Return how many trials there may be."""
    return len(whole) // len(spec.seeds) * spec.max_seeds


def _with_seeds(first: Sequence[PlannedTrial], seeds: Sequence[int]) -> Iterator[PlannedTrial]:
    """Yield the trials of other seeds, seed by seed."""
    rows = {(p.trial.setting, p.trial.row): p for p in first}
    for seed in seeds:
        for one in rows.values():
            yield replace(one, seen=(), trial=one.trial.model_copy(update={"seed": seed}))


def states(records: Sequence[Record], rule: UntilDecided) -> list[State]:
    """Return what is decided and what is open in each setting, by the tests that a report makes.

    Raises:
        SpecError: all seeds share their test samples, and it is not known which were answered correctly.
    """
    settings = by_setting(records)
    for setting in settings:
        if not setting.own_tests and not setting.answers(ACC):
            raise SpecError(f"--until decided cannot be used for {setting.title}: all seeds share the test samples, "
                            "and the records do not say which of them were answered correctly. Run a fixed number of "
                            "seeds without --until, or rerun older records with --rerun")
    return [_state(setting, rule) for setting in settings]


def _state(setting: Setting, rule: UntilDecided) -> State:
    scenario, baseline = setting.records[0].trial.scenario, None if rule.baseline == BEST else setting.baseline
    if baseline is None:
        tests = family(ACC.column, setting.compared(ACC), until=rule, answers=setting.answers(ACC))
        running = [label for label in setting.compared(ACC) if label not in tests.beaten]
        apart = {frozenset((p.first, p.second)) for p in tests.pairs if not _closed(p)}
        left = [label for label in running if any(frozenset((label, other)) in apart for other in running)]
        decided = {label: "worse than another" for label in setting.compared(ACC) if label in tests.beaten}
        if not left:
            untested = next((p.untested for p in tests.pairs if p.untested and {p.first, p.second} <= set(running)), "")
            decided |= dict.fromkeys(running, "the best" if len(running) == 1 else f"not tested: {untested}" if untested
                                     else "the best, equal on every seed")
        return State(scenario, "which is best", decided, tuple(left), None)
    tests = family(ACC.column, setting.compared(ACC, [baseline]), baseline, until=rule,
                   answers=setting.answers(ACC))
    return State(scenario, f"against {baseline}", {p.first: _verdict(p) for p in tests.pairs if _closed(p)},
                 tuple(p.first for p in tests.pairs if not _closed(p)), baseline)


def _closed(pair: Pair) -> bool:
    return pair.significant or ((pair.equal or pair.untested == SAME) and len(pair.differences) >= EQUAL)


def _verdict(pair: Pair) -> str:
    if pair.untested:
        return f"not tested: {pair.untested}"
    return "equal" if not pair.significant else "better" if pair.better("up") == pair.first else "worse"


def next_round(planned: Sequence[PlannedTrial], found: Sequence[State], rule: UntilDecided, seeds: Sequence[int],
               places: int) -> list[PlannedTrial]:
    """Return the trials to be added: of what is open, and of the baseline, their next seeds.

    As many seeds at once as give every worker a trial: looks are taken after each seed all the same, so this changes
    nothing but how many are trained beyond the one that decides.

    Args:
        planned: all trials so far.
        found: by scenario, of which each is a setting of the experiment.
        rule: by which they are added.
        seeds: in their order, of the whole run.
        places: workers, or trials that are trained as a stack.
    """
    rows: dict[tuple[str, str], list[PlannedTrial]] = {}
    for one in planned:
        rows.setdefault((one.trial.scenario, one.label), []).append(one)
    going = [key for key, own in rows.items() if len(own) < rule.most and key in {
        (state.scenario, label) for state in found for label in state.open}]
    partners = {(s.scenario, s.partner) for s in found if s.partner and any(key[0] == s.scenario for key in going)
                and (s.scenario, s.partner) in rows}
    batch = max(1, places // max(1, len(going) + len(partners)))
    wanted: dict[str, int] = {}  # by scenario: how many seeds the baseline needs
    added: list[PlannedTrial] = []
    for key in going:
        have = len(rows[key])
        upto = min(have + batch, rule.most)
        wanted[key[0]] = max(wanted.get(key[0], 0), upto)
        added += _with_seeds(rows[key][:1], seeds[have:upto])
    for scenario, label in partners:
        own = rows[scenario, label]
        added += _with_seeds(own[:1], seeds[len(own):wanted[scenario]])
    order = list(rows)
    return sorted(added, key=lambda p: (p.trial.seed, order.index((p.trial.scenario, p.label))))
