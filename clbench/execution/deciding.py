"""Plan `--until decided`: its rule and seeds, the state of each setting, and the trials of the next round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clbench.core.errors import SpecError, guess
from clbench.experiment.spec import Spec
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.until import BEST, FIRST, UntilDecided, sequence
from clbench.report.analysis.families import SAME, PairedTest, family
from clbench.report.analysis.grouping import Setting, group_by_setting
from clbench.report.formatting import as_ranges, clean
from clbench.results.records import Record
from clbench.results.store import Store

EQUAL = 5  # no seeds are added to two methods that are exactly equal on this many, or that give the same result on each


@dataclass(frozen=True)
class State:
    """The state of a setting after a round: the decided and the inconclusive methods.

    A method is its `Trial.method_config`, because reports may show its label in another form.
    """

    scenario: str
    question: str  # in words
    decided: Mapping[str, str]  # verdict by method
    open: tuple[str, ...]  # methods that would need more seeds
    partner: str | None  # the baseline, which needs the same seeds


def rule_of(spec: Spec, labels: Sequence[str]) -> UntilDecided:
    """Return the rule of an experiment.

    Raises:
        SpecError: there are too few initial seeds, `max_seeds` is too small, there is only one method, or the baseline
            is not one of the methods.
    """
    if spec.baseline not in (None, BEST, *labels):
        raise SpecError(f"--baseline: no method {spec.baseline!r} in the experiment"
                        f"{guess(spec.baseline or '', labels)} (its methods are {', '.join(labels)}; or write {BEST})")
    if len(spec.seeds) < FIRST:
        raise SpecError(f"--until decided starts with at least {FIRST} seeds, got "
                        f"{len(spec.seeds)}: leave --seeds out, which means {FIRST}, or give more")
    if spec.max_seeds < len(spec.seeds):
        raise SpecError(f"--max-seeds {spec.max_seeds} is less than the {len(spec.seeds)} seeds to start with "
                        "(--seeds): give more")
    if len(labels) < 2:
        raise SpecError("--until decided compares methods: name at least two")
    return UntilDecided(baseline=spec.baseline, first=len(spec.seeds), most=spec.max_seeds)


def initial_trials(spec: Spec, planned: Sequence[PlannedTrial], out: Path, shard: str | None) -> list[PlannedTrial]:
    """Return the initial trials: all of the first seeds, and of later seeds up to the last one with a record, by row.

    Args:
        spec: the experiment.
        planned: its trials of the first seeds.
        out: the run folder.
        shard: must be None.

    Raises:
        SpecError: the experiment has no valid rule, or the folder has results of another rule or of other seeds.
    """
    if shard is not None:
        raise SpecError("--shard and --until do not go together: which seeds are run depends on the results of all "
                        "(several machines can share a run folder: start the same command on each)")
    rule = rule_of(spec, list(dict.fromkeys(p.label for p in planned)))
    records, _ = Store(out).read()
    seeds = sequence(spec.seeds, rule.most)
    settings = {p.trial.environment for p in planned}
    existing = [r for r in records if r.trial.environment in settings]
    if other_rules := {str(r.until) for r in existing if r.until and r.until != rule}:
        raise SpecError(f"the results in {out} were made by {' and '.join(sorted(other_rules))}, but this run has "
                        f"{rule}. A rule must stay the same after its first interim analysis: use the earlier one, or "
                        "start in another folder (--out) with other seeds (such as --seeds 100,101,102)")
    if other_seeds := sorted({r.trial.seed for r in existing} - set(seeds)):
        raise SpecError(f"{out} has results of seed {as_ranges(other_seeds)}, and this rule takes {as_ranges(seeds)}, "
                        "in their order: choose another --out")
    rows = {(p.trial.environment, p.trial.method_config) for p in planned}
    if rule.baseline not in (None, BEST) and any(
            clean(r.label) == clean(rule.baseline) and (r.trial.environment, r.trial.method_config) not in rows
            for r in existing):
        raise SpecError(f"--baseline: {out} has results of another method with the label {rule.baseline!r}, so reports "
                        "could not tell which one is the baseline: choose another label or another --out")
    recorded_keys, first_trials = {r.key for r in records}, [replace(p, until=rule) for p in planned]
    later_trials = list(_with_seeds(first_trials, seeds[rule.first:]))
    last_seeds: dict[tuple[tuple[str, ...], str], int] = {}  # the last seed with a record, by row
    for trial in (p.trial for p in later_trials):
        if trial.key in recorded_keys:
            last_seeds[trial.environment, trial.method_config] = trial.seed
    later_trials = [p for p in later_trials
                    if p.trial.seed <= last_seeds.get((p.trial.environment, p.trial.method_config), -1)]
    return [*first_trials, *later_trials]


def count_most_trials(spec: Spec, planned: Sequence[PlannedTrial]) -> int:
    """Return the largest possible number of trials."""
    return len(planned) // len(spec.seeds) * spec.max_seeds


def _with_seeds(first: Sequence[PlannedTrial], seeds: Sequence[int]) -> Iterator[PlannedTrial]:
    """Yield the trials of the rows in `first` for further seeds, seed by seed."""
    rows = {(p.trial.environment, p.trial.method_config): p for p in first}
    for seed in seeds:
        for planned in rows.values():
            yield replace(planned, seen=(), trial=planned.trial.model_copy(update={"seed": seed}))


def states(records: Sequence[Record], rule: UntilDecided) -> list[State]:
    """Return the state of each setting with results, according to the same statistical tests as in reports.

    Raises:
        SpecError: all seeds share their test samples, and the records do not have the results of single samples.
    """
    settings = [setting for setting in group_by_setting(records) if any(method.done for method in setting.methods)]
    for setting in settings:
        if not setting.own_tests and not setting.answers(setting.final):
            raise SpecError(f"--until decided cannot be used for {setting.title}: all seeds share the test samples, "
                            "and the records do not have the results of single samples. Run a fixed number of seeds "
                            "without --until, or rerun older records with --rerun")
    return [_state(setting, rule) for setting in settings]


def _state(setting: Setting, rule: UntilDecided) -> State:
    scenario, baseline = setting.records[0].trial.scenario, None if rule.baseline == BEST else setting.baseline
    rows = {method.label: method.records[0].trial.method_config for method in setting.methods}
    if baseline is None:
        values = setting.compared(setting.final)
        tests = family(setting.final.column, values, until=rule, answers=setting.answers(setting.final))
        running = [label for label in values if label not in tests.beaten]
        apart = {frozenset((p.first, p.second)) for p in tests.pairs if not _is_closed(p)}
        undecided = [label for label in running if any(frozenset((label, other)) in apart for other in running)]
        decided = {label: "worse than another" for label in values if label in tests.beaten}
        if not undecided:
            untested = next((p.untested for p in tests.pairs if p.untested and {p.first, p.second} <= set(running)), "")
            decided |= dict.fromkeys(running, "the best" if len(running) == 1 else f"not tested: {untested}" if untested
                                     else "the best, equal on every seed")
        return State(scenario, "which is best", {rows[label]: verdict for label, verdict in decided.items()},
                     tuple(rows[label] for label in undecided), None)
    tests = family(setting.final.column, setting.compared(setting.final, [baseline]), baseline, until=rule,
                   answers=setting.answers(setting.final))
    return State(scenario, f"against {baseline}",
                 {rows[p.first]: _verdict(p, setting) for p in tests.pairs if _is_closed(p)},
                 tuple(rows[p.first] for p in tests.pairs if not _is_closed(p)), rows[baseline])


def _is_closed(pair: PairedTest) -> bool:
    return pair.significant or ((pair.equal or pair.untested == SAME) and len(pair.differences) >= EQUAL)


def _verdict(pair: PairedTest, setting: Setting) -> str:
    if pair.untested:
        return f"not tested: {pair.untested}"
    if not pair.significant:
        return "equal"
    return "better" if pair.better(setting.metric.direction) == pair.first else "worse"


def next_round(planned: Sequence[PlannedTrial], setting_states: Sequence[State], rule: UntilDecided,
               seeds: Sequence[int], places: int) -> list[PlannedTrial]:
    """Return the trials to add: the next seeds of the inconclusive methods and of the baseline.

    Each round adds enough seeds to give every worker a trial. An interim analysis still follows each seed, so the size
    of a round only changes how many seeds are trained after the deciding one.

    Args:
        planned: all trials so far.
        setting_states: the state of each setting; the settings of an experiment differ by scenario.
        rule: the rule by which seeds are added.
        seeds: all seeds of the run, in their order.
        places: number of trials that run at the same time.
    """
    rows: dict[tuple[str, str], list[PlannedTrial]] = {}
    for planned_trial in planned:
        rows.setdefault((planned_trial.trial.scenario, planned_trial.trial.method_config), []).append(planned_trial)
    open_keys: set[tuple[str, str]] = set()
    for state in setting_states:
        open_keys.update((state.scenario, method) for method in state.open)
    open_rows = [key for key in rows if key in open_keys]  # after an interruption, they may have all seeds already
    partners = {(s.scenario, s.partner) for s in setting_states if s.partner and (s.scenario, s.partner) in rows
                and any(key[0] == s.scenario for key in open_rows)}
    going = sum(len(rows[key]) < rule.most for key in open_rows)
    batch = max(1, places // max(1, going + len(partners)))
    needed_seed_counts: dict[str, int] = {}  # number of seeds that the baseline needs, by scenario
    added: list[PlannedTrial] = []
    for key in open_rows:
        seed_count = len(rows[key])
        target = min(seed_count + batch, rule.most)
        needed_seed_counts[key[0]] = max(needed_seed_counts.get(key[0], 0), target)
        added += _with_seeds(rows[key][:1], seeds[seed_count:target])
    for scenario, method in partners:
        row = rows[scenario, method]
        added += _with_seeds(row[:1], seeds[len(row):needed_seed_counts[scenario]])
    order = list(rows)
    return sorted(added, key=lambda p: (p.trial.seed, order.index((p.trial.scenario, p.trial.method_config))))
