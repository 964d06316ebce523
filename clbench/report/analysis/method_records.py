"""The records of one method in one setting, and the facts that follow from these records, with their marks in tables.

Examples of such facts are that a method is underfit, or that it is not better than chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from statistics import fmean, median

from clbench.core.objective import METRICS
from clbench.core.scenario import Outputs, scenario_rules
from clbench.experiment.search import Searched
from clbench.report.formatting import clean, options_of, to_plain
from clbench.report.model import Result
from clbench.results.items import wilson_interval
from clbench.results.metrics import acc, learning_accuracy
from clbench.results.records import Record, metric_of, metrics_of
from clbench.results.stats import ROUNDING

INFERS, RECIPE, STALE, UNDERFIT, CHANCE = "†", "¶", "※", "△", "○"
OUTPUTS: dict[Outputs, str] = {"own": "‡", "all": "§"}
SHORT = {  # explanations of the marks for the footnote of a table
    INFERS: "task ID inferred", OUTPUTS["own"]: "outputs = own in training",
    OUTPUTS["all"]: "outputs = all in training", STALE: "stale results",
    RECIPE: "trained with hyperparameters of its own (see the notes)", UNDERFIT: "underfit",
    CHANCE: "not better than guessing"}
MARKS = {
    INFERS: "The method was not given the task ID of a test sample and inferred it. Task-ID accuracy is how often it "
            "was right",
    OUTPUTS["own"]: "In training, new samples competed among the classes of their own task only (outputs = own), "
                    "instead of among all classes so far. Records from before this option have no mark",
    OUTPUTS["all"]: "In training, new samples competed among all outputs of the stream, including those of later "
                    "classes (outputs = all). Records from before this option have no mark",
    STALE: "Some results are stale: they come from other code or data than there are now, or from several states of "
           "the method's code. Notes say which",
    RECIPE: "The method was trained with hyperparameters of its own",
    UNDERFIT: "Underfit: the method had not learned its tasks when their steps ended, so its row says little about the "
              "method",
    CHANCE: "Not better than guessing: the 95% interval that the test samples give (Wilson) includes chance, or is "
            "below it",
}
UNDERFIT_LOSS = 0.6  # share of the chance loss
LEARNED = 0.6  # accuracy just after a task, as a share of the way from guessing to 100%


def underfit_share(records: Sequence[Record]) -> float | None:
    """Return the mean share of the chance loss that is left after training if it is above `UNDERFIT_LOSS`, else None.

    See `loss_share`. The threshold of 0.6 comes from the 296 rows in `reports/` whose records have last losses. Of
    these rows, 30 are above it, and all 30 learned their tasks badly: their accuracy just after a task was at most 58%
    with ten classes, or 64% with two. Rows that learned well are far below it: at most 0.34 if tasks were learned to
    85%. A linear model after 20 steps on stored features has 0.65 to 0.91. Its replay ended 26 and 61 points below
    the result of 300 epochs.

    A method whose tasks were learned by accuracy (`LEARNED`) is never called underfit, because its loss may contain
    more than cross-entropy, even in the first task. All of the 30 rows are below that: at most 0.53.
    """
    if records and all(has_learned(r) for r in records):
        return None
    shares = [share for r in records if (share := loss_share(r)) is not None]
    if not shares or len(shares) < len(records):
        return None
    return mean if (mean := fmean(shares)) > UNDERFIT_LOSS else None


def has_learned(record: Record) -> bool:
    """Return whether the mean accuracy on each task just after it is above `LEARNED` of the way from guessing to 100%.

    Return False for a metric that is not a share of test samples, and where `chance_level` is not known.
    """
    guessing = chance_level(record, after_each=True) if metric_of(record).is_share else None
    return guessing is not None and guessing < 1 and learning_accuracy(record.R) > guessing + LEARNED * (1 - guessing)


def loss_share(record: Record) -> float | None:
    """Return the last training loss as a share of the chance loss: the median over tasks or the first task's, if lower.

    The last training loss is the mean over the last tenth of a task's steps. The chance loss is log n, if n classes
    compete with the label of a new sample. From the second task on, the loss may contain more than cross-entropy
    (replay, distillation, a penalty). The share of the first task is therefore an upper limit: a method that learned
    its first task is never called underfit.

    Return None if the losses do not allow a judgment: no steps (analytic classifiers), older records, classes that
    return or arrive unevenly, or trials that continue others.
    """
    trial, stream = record.trial, record.stream
    if stream is None or trial.continues or str(trial.arrival):
        return None
    if trial.scenario == "class" and record.outputs is None:
        return None
    rules = scenario_rules(trial.scenario)
    shares = []
    for index, losses in enumerate(record.last_losses):
        competing = next(outputs for tasks, outputs in rules.in_loss(stream.classes, index, record.outputs or "seen")
                         if index in tasks)
        if losses and len(set(competing)) > 1:
            shares.append(losses[1] / math.log(len(set(competing))))
    return min(median(shares), shares[0]) if shares else None


def test_samples(records: Sequence[Record]) -> int | None:
    """Return the number of test samples of all tasks (the smallest over seeds), or None if it is not known."""
    return min((r.stream.tested for r in records if r.stream), default=0) or None


def equal_test_samples(records: Sequence[Record]) -> float | None:
    """Return the number of test samples for the variance of ACC (the smallest over seeds), or None if it is not known.

    See `StreamFacts.equally_tested`.
    """
    return min((r.stream.equally_tested for r in records if r.stream and r.stream.test_samples), default=0) or None


def test_set_interval(records: Sequence[Record]) -> tuple[float, float] | None:
    """Return the 95% interval (Wilson) of a method's mean ACC that follows from the number of test samples.

    Return None for a metric that is not a share of test samples.
    """
    samples = equal_test_samples(records) if all(metric.is_share for metric in metrics_of(records)) else None
    return wilson_interval(fmean(acc(r.R) for r in records), samples) if samples else None


def chance_level(record: Record, after_each: bool = False) -> float | None:
    """Return the ACC of guessing: the mean over tasks of 1 / n, if a prediction is chosen among n classes.

    With `after_each`, each task is tested just after it, when fewer classes may compete.

    Return None for a trial that continues another, because the earlier tasks compete as well. Return None also for
    tasks without classes.
    """
    if record.stream is None or record.trial.continues or not any(record.stream.classes):
        return None
    rules, tasks = scenario_rules(record.trial.scenario), record.stream.classes
    return fmean(1 / len(set(rules.at_test(tasks, index, index + 1 if after_each else len(tasks))))
                 for index in range(len(tasks)))


def is_at_chance(records: Sequence[Record]) -> bool:
    """Return whether the mean ACC is no better than chance: its test-set interval contains chance or is below it."""
    levels = [level for r in records if (level := chance_level(r)) is not None]
    interval = test_set_interval(records) if levels else None
    return interval is not None and max(levels) < 1 and interval[0] <= max(levels)


def same_on_every_seed(records: Sequence[Record]) -> bool:
    """Return whether two or more seeds have the same accuracies on every task, so that seeds are no evidence."""
    final_rows = [r.R[-1] for r in records]
    return len(final_rows) > 1 and all(_are_equal(final_rows[0], row) for row in final_rows)


def _are_equal(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two rows of accuracies differ by no more than rounding errors."""
    return all(abs(a - b) <= ROUNDING for a, b in zip(first, second, strict=False))


@dataclass(frozen=True)
class MethodRecords:
    """The records of one method in one setting."""

    label: str  # name in tables: the display name or the id
    records: tuple[Record, ...]  # in the order of their seeds
    seeds: tuple[int, ...]  # of the whole setting; if a rule added seeds, of this method
    id: str = ""  # name for `--methods`

    def __post_init__(self) -> None:
        """Use the label as the id if there is no id."""
        if not self.id:
            object.__setattr__(self, "id", self.label)

    @property
    def strategy(self) -> str:
        """Return the name of the method's strategy."""
        return self.records[0].trial.method.name

    @property
    def reference(self) -> bool:
        """Return whether the method is a reference, which tables show separately."""
        return self.records[0].reference

    @cached_property
    def done(self) -> list[Record]:
        """Return the records with a result."""
        return [r for r in self.records if r.status == "done"]

    @property
    def complete(self) -> bool:
        """Return whether every seed in `seeds` has a result."""
        return {r.trial.seed for r in self.done} == set(self.seeds)

    @property
    def missing(self) -> list[int]:
        """Return the seeds without a record."""
        return sorted(set(self.seeds) - {r.trial.seed for r in self.records})

    @property
    def infers(self) -> bool:
        """Return whether the method had to infer the task of a test sample."""
        return any(r.task_inference for r in self.records)

    @property
    def marks(self) -> str:
        """Return the marks of the method's row, which `MARKS` explains."""
        outputs_in_loss = {r.outputs for r in self.records}
        output_marks = [mark for outputs, mark in OUTPUTS.items() if outputs in outputs_in_loss]
        return "".join([INFERS if self.infers else "", *output_marks,
                        STALE if self.stale or len(self.codes) > 1 else "",
                        RECIPE if self.records[0].trial.own_recipe else "", self.cautions])

    @cached_property
    def cautions(self) -> str:
        """Return the caution marks that must accompany the statement that the method is worse than another."""
        return (UNDERFIT if underfit_share(self.done) else "") + (CHANCE if is_at_chance(self.done) else "")

    @property
    def stale(self) -> dict[str, list[int]]:
        """Return the reasons why results are stale, with the seeds of each reason."""
        seeds_by_reason: dict[str, list[int]] = {}
        for record in self.done:
            if record.stale:
                seeds_by_reason.setdefault(" and ".join(record.stale), []).append(record.trial.seed)
        return seeds_by_reason

    @property
    def codes(self) -> dict[str, list[int]]:
        """Return the hashes of the method's code that produced its results, if known, with the seeds of each hash."""
        seeds_by_hash: dict[str, list[int]] = {}
        for record in self.done:
            code = record.provenance.code.get("method")
            if code and code.hash:
                seeds_by_hash.setdefault(code.hash, []).append(record.trial.seed)
        return seeds_by_hash

    @property
    def searched(self) -> Searched | None:
        """Return the tuning that the method's options come from, or None if it was not tuned."""
        return self.records[0].searched

    @property
    def joint(self) -> bool:
        """Return whether the method is joint training: a reference that stores every training sample so far.

        This follows from the records alone, so reports do not depend on the installed plugins.
        """
        return self.reference and all(
            r.stream is not None and r.costs.replay_samples == list(accumulate(r.stream.train_samples))
            for r in self.done)

    @property
    def fine_tuning(self) -> bool:
        """Return whether the method is sequential fine-tuning: a reference that trains and stores only its parameters.

        As with `joint`, this follows from the records alone.
        """
        sizes = [{*r.costs.trainable, *(sum(roles.values()) for roles in r.costs.parameters)} for r in self.done]
        return (self.reference and not any(any(r.costs.replay_samples) for r in self.done)
                and all(len(counts) == 1 for counts in sizes))

    @property
    def state(self) -> str:
        """Return how many seeds gave a result: `3`, or `1/3; 1 diverged, 1 missing`."""
        if self.complete:
            return str(len(self.seeds))
        counts = [(sum(r.status == s for r in self.records), s) for s in ("diverged", "failed")]
        counts.append((len(self.missing), "missing"))
        return f"{len(self.done)}/{len(self.seeds)}; " + ", ".join(f"{n} {status}" for n, status in counts if n)

    @cached_property
    def result(self) -> Result:
        """Return the raw numbers of the records with a result."""
        done = self.done
        return Result(
            label=self.label, strategy=self.strategy, reference=self.reference, complete=self.complete,
            planned=self.seeds, seeds=tuple(r.trial.seed for r in done), R=tuple(tuple(map(tuple, r.R)) for r in done),
            trainable=tuple(tuple(r.costs.trainable) for r in done),
            parameters=tuple(tuple(sum(roles.values()) for roles in r.costs.parameters) for r in done),
            bytes=tuple(tuple(sum(roles.values()) for roles in r.costs.bytes) for r in done),
            curves=tuple(r.curve for r in done if r.curve),
            options=tuple((name, to_plain(value)) for name, value in options_of(self.records[0].trial).items()),
            seconds=tuple(sum(r.timings.train) + sum(r.timings.consolidate) for r in done),
            task_names=names_of_tasks(done), common_test=any(r.common_test for r in done),
            scores={name: tuple(tuple(map(tuple, r.scores[name])) for r in done)
                    for name in METRICS if done and all(name in r.scores for r in done)})


def names_of_tasks(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the names of tasks without classes, or nothing if tasks have no names or records differ in them."""
    names = {tuple(map(clean, r.stream.task_names)) for r in records if r.stream}
    return next(iter(names)) if len(names) == 1 else ()


def done_records(methods: Iterable[MethodRecords]) -> list[Record]:
    """Return the records with a result of several methods, in the order of the methods."""
    return list(chain.from_iterable(m.done for m in methods))
