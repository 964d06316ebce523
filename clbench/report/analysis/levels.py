"""Whether a method is underfit or not better than chance, and the marks that tables use for this.

Both follow from the method's own records, without a comparison to other methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from clbench.core.scenario import Outputs, scenario_rules
from clbench.results.items import wilson_interval
from clbench.results.metrics import acc
from clbench.results.records import Record, metrics_of
from clbench.results.stats import ROUNDING

INFERS, RECIPE, STALE, UNDERFIT, CHANCE = "†", "¶", "※", "△", "○"
OUTPUTS: dict[Outputs, str] = {"own": "‡", "all": "§"}
SHORT = {  # in the footnote of a table
    INFERS: "task ID inferred", OUTPUTS["own"]: "outputs = own in training",
    OUTPUTS["all"]: "outputs = all in training", STALE: "stale results",
    RECIPE: "trained with hyperparameters of its own (see the notes)", UNDERFIT: "underfit",
    CHANCE: "not better than guessing"}
MARKS = {
    INFERS: "The method was not given the task ID of a test sample and inferred it. Task-ID accuracy is how often it "
            "was right",
    OUTPUTS["own"]: "In training, new samples competed among the classes of their own task only (outputs = own), "
                    "instead of among all classes so far. Older records have no mark",
    OUTPUTS["all"]: "In training, new samples competed among all outputs of the stream, including those of later "
                    "classes (outputs = all). Older records have no mark",
    STALE: "Some results are stale: they come from other code or data than there are now, or from several states of "
           "the method's code. Notes say which",
    RECIPE: "The method was trained with hyperparameters of its own",
    UNDERFIT: "Underfit: the method had not learned its tasks when their steps ended, so its row says little about the "
              "method",
    CHANCE: "Not better than guessing: the 95% interval that the test samples give (Wilson) includes chance, or is "
            "below it",
}


FALL, SHARE = 0.03, 0.02  # of the loss from tenth to tenth: in itself (nats), and as a share of it


UNDERFIT_LOSS = 0.6  # of the chance loss


def underfit(records: Sequence[Record]) -> float | None:
    """Return the mean share of the chance loss that is left after training if it is above `UNDERFIT_LOSS`, else None.

    See `loss_share`. Why 0.6: of the 296 rows in `reports/` whose records have last losses, 30 are above it, all of
    which learned their tasks badly: just after a task they got at most 58 % of ten classes right, or 64 % of two.
    Rows that learned well are far below: at most 0.34 where tasks were learned to 85 %. A linear model after 20 steps
    on stored features, whose replay ended 26 and 61 points below what 300 epochs give, has 0.65 to 0.91.
    """
    shares = [share for r in records if (share := loss_share(r)) is not None]
    if not shares or len(shares) < len(records):
        return None
    return mean if (mean := fmean(shares)) > UNDERFIT_LOSS else None


def loss_share(record: Record) -> float | None:
    """Return the last training loss as a share of the chance loss: the smaller of the median task and the first task.

    The last training loss is the mean over the last tenth of a task's steps. The chance loss is log n for the n classes
    that compete with the label of a new sample. From the second task on, the loss may contain more than cross-entropy
    (replay, distillation, a penalty). So the first task counts as well: a method that learned its first task is never
    called underfit.

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


def test_set_interval(records: Sequence[Record]) -> tuple[float, float] | None:
    """Return the 95 % interval (Wilson) of a method's mean ACC that the number of test samples gives.

    Return None for a metric that is no share of test samples.
    """
    samples = test_samples(records) if all(metric.is_share for metric in metrics_of(records)) else None
    return wilson_interval(fmean(acc(r.R) for r in records), samples) if samples else None


def chance(record: Record) -> float | None:
    """Return the ACC of guessing: the mean over tasks of 1 / n, for the n classes among which a prediction is chosen.

    None for a trial that continues another, whose own tasks are not all that compete, and for tasks without classes.
    """
    if record.stream is None or record.trial.continues or not any(record.stream.classes):
        return None
    rules, tasks = scenario_rules(record.trial.scenario), record.stream.classes
    return fmean(1 / len(set(rules.at_test(tasks, index, len(tasks)))) for index in range(len(tasks)))


def at_chance(records: Sequence[Record]) -> bool:
    """Return whether the mean ACC is no better than chance: its test-set interval contains chance or is below it."""
    levels = [level for r in records if (level := chance(r)) is not None]
    interval = test_set_interval(records) if levels else None
    return interval is not None and max(levels) < 1 and interval[0] <= max(levels)


def same_on_every_seed(records: Sequence[Record]) -> bool:
    """Return whether two or more seeds have the same accuracies on every task, so that seeds are no evidence."""
    ends = [r.R[-1] for r in records]
    return len(ends) > 1 and all(_equal(ends[0], end) for end in ends)


def _equal(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two rows of accuracies differ by no more than rounding errors."""
    return all(abs(a - b) <= ROUNDING for a, b in zip(first, second, strict=False))
