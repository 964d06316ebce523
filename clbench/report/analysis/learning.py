"""What methods learned and lost: whether tasks were learned, stability gaps, and answers of language models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean

from clbench.core.objective import objective_of
from clbench.core.pretrained import STARTS_UNTRAINED
from clbench.core.registry import installed
from clbench.experiment.trial import has_slow_heads
from clbench.report.analysis.method_records import (
    UNDERFIT_LOSS,
    MethodRecords,
    same_on_every_seed,
    test_set_interval,
    underfit_share,
)
from clbench.report.formatting import clean, describe_difference, join_names, unit_of, with_ends
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.curve import gaps
from clbench.results.metrics import acc, learning_accuracy
from clbench.results.records import Record, metric_of, metrics_of, select_metric

ANSWERS = "Answers to a test prompt of each task"
ANSWER_COLUMNS = ("task", "prompt", "response in the data", "answer after the task", "answer after the last task")
LONGEST = 120  # characters of a cell


def stability_gaps(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Yield a line on how the metric on old tasks gets worse after a boundary, and how it recovers."""
    descriptions = [description for method in methods if (description := _gap(method))]
    if descriptions:
        label = metrics_of(chain.from_iterable(method.done for method in methods))[0].label
        yield (f"Stability gap (docs/metrics.md): how the mean {label} on old tasks changes after a new task begins, "
               f"averaged over boundaries and seeds. {'; '.join(descriptions)}")


def _gap(method: MethodRecords) -> str:
    curves = [r.curve for r in method.done if r.curve and any(map(max, r.curve.steps))]
    method_gaps = list(chain.from_iterable(map(gaps, curves)))
    if not method_gaps:
        return ""
    metric = method_gaps[0].metric
    fall, rise = ("falls", "rises") if metric.direction == "up" else ("rises", "falls")
    falls = f"{method.label} {fall} by {describe_difference(fmean(gap.depth for gap in method_gaps), metric)}"
    recovery_lengths = [gap.length for gap in method_gaps if gap.length is not None]
    if not recovery_lengths and all(gap.is_small for gap in method_gaps):
        return f"{falls}, which is too little to measure a recovery"
    if not recovery_lengths:
        return f"{falls} and does not recover"
    recovery = describe_difference(fmean(gap.recovery for gap in method_gaps), metric, with_unit=False)
    return (f"{falls}, {rise} again by {recovery} and recovers after {fmean(recovery_lengths):.0f} steps "
            f"({len(recovery_lengths)} of {len(method_gaps)} gaps recover)")


def same_shares(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Yield a line on each further share, such as exact match, that is the same on every seed of a method."""
    records = list(chain.from_iterable(method.done for method in methods))
    metrics = objective_of(metrics_of(records)[0]).metrics if records else ()
    for metric in (metric for metric in metrics if metric.is_share and all(metric.name in r.scores for r in records)):
        texts, unit = [], unit_of(metric)
        for method in methods:
            chosen = select_metric(method.done, metric.name)
            if same_on_every_seed(chosen) and (interval := test_set_interval(chosen)):
                texts.append(f"{method.label} {with_ends(acc(chosen[0].R), interval, unit)}")
        if texts:
            yield (f"Every seed gave the same {metric.label}: {join_names(texts)}. ± 0.00 does not mean precision; in "
                   "parentheses is the 95% interval (Wilson) that the number of test items allows")


FALL, SHARE = 0.03, 0.02  # smallest fall of the loss over the last two tenths: in nats, and as a share of it
FAR = 20.0  # points of learning accuracy below joint training
QUARTER = 4


def unlearned(methods: Sequence[MethodRecords], joint: Mapping[int, Record]) -> Iterable[str]:
    """Yield lines on methods that are underfit, not converged, far below joint training, or short of their budget.

    A line also names methods whose heads are trained slowly.

    Args:
        methods: the methods of one setting.
        joint: the record of joint training for each seed that has one.
    """
    if high := [f"{m.label} ({f'{100 * share:.0f}%' if share < 10 else 'more than 1,000%'})"
                for m in methods if (share := underfit_share(m.done)) is not None]:
        yield (f"Underfit: the training loss at the end of a task was above {100 * UNDERFIT_LOSS:.0f}% of the loss of "
               f"guessing: {join_names(high)}. Give these rows more steps (--epochs, --iterations) or another learning "
               "rate (--lr) before comparing them")
    falling = [f"{m.label} ({losses[0]:.2f} to {losses[1]:.2f})" for m in methods
               if (losses := falling_loss(m.done)) is not None]
    if falling:
        yield ("Not converged: the training loss was still falling when a task's steps ended. In parentheses "
               "are the mean losses of the second-to-last and of the last tenth of the steps: "
               f"{join_names(falling)}. More steps (--epochs, --iterations) would change these rows")
    if slow := [m.label for m in methods if trains_heads_slowly(m)]:
        yield ("One learning rate for a pretrained backbone and new heads: a step of Adam moves a weight by about the "
               "learning rate, which is low here, as the backbone needs it. The backbone then adapts to heads that are "
               f"nearly random: {join_names(slow)}. Tune --head-lr, too, before comparing these rows with others")
    behind = [f"{m.label} ({mean:.1f})" for m in methods if (mean := low_learning(m, joint)) is not None]
    if behind:
        best = 100 * fmean(learning_accuracy(r.R) for r in joint.values())
        label = metric_of(next(iter(joint.values()))).label
        yield (f"Underfit: just after a task was learned, its {label} is {FAR:.0f} or more points below that of joint "
               f"training at the same time ({best:.1f}%, mean over tasks), on every seed: {join_names(behind)}. A "
               f"method cannot forget what it has not learned, so read forgetting together with {label}")
    if short := [f"{m.label} ({steps:,})" for m in methods if (steps := steps_of_authors(m))]:
        yield ("Short of the authors' budget: methods took less than a quarter of the optimizer steps per task that "
               f"their authors take (in parentheses): {join_names(short)}. Do not expect their published accuracy")


def steps_of_authors(method: MethodRecords) -> int:
    """Return the steps of a method's authors if it took less than a quarter of them, else 0.

    Steps are counted per task. Tasks in which the method trains nothing do not count. The result is also 0 if only one
    of the authors and this run starts from pretrained weights, because a network from scratch needs more steps.
    """
    info = installed().strategies.get(method.strategy)
    if info is None or info.from_scratch != (method.records[0].trial.weights is None):
        return 0
    steps = max((max(r.costs.steps, default=0) for r in method.done), default=0)
    return info.authors_steps if 0 < steps < info.authors_steps / QUARTER else 0


def trains_heads_slowly(method: MethodRecords) -> bool:
    """Return whether a method trains a pretrained backbone and new heads at a rate that is low for heads.

    See `has_slow_heads`. Language models have no new heads.
    """
    return bool(method.done) and all(
        any(note.endswith(STARTS_UNTRAINED) for note in r.notes)
        and has_slow_heads(r.trial, r.costs.trainable, r.costs.parameters, r.costs.steps) for r in method.done)


def falling_loss(records: Sequence[Record]) -> tuple[float, float] | None:
    """Return the mean losses of the last two tenths of the steps, or None if the loss does not fall enough to matter.

    Means are over all tasks and seeds with recorded losses. They must fall by `FALL` and by `SHARE`, and the loss must
    fall in more than half of the tasks.
    """
    last_losses = chain.from_iterable(r.last_losses for r in records)
    pairs = [(pair[0], pair[1]) for pair in last_losses if pair]
    if not pairs:
        return None
    before, last = (fmean(side) for side in zip(*pairs, strict=True))
    falling_count = sum(b > a for b, a in pairs)
    is_enough = before - last >= max(FALL, SHARE * abs(before)) and 2 * falling_count > len(pairs)
    return (before, last) if is_enough else None


def low_learning(method: MethodRecords, joint: Mapping[int, Record]) -> float | None:
    """Return a method's learning accuracy (%) if it is `FAR` below joint training's on every seed, else None.

    Return None for a metric that is no percentage, for references, and if all tasks share one test set. Return None
    also for methods whose learning accuracy has other causes than training: analytic classifiers, which take no steps
    on later tasks, methods that infer the task, and methods that train without the old classes that compete at test
    time (older records do not say whether they did).
    """
    records = method.done
    if not all(metric.is_share for metric in metrics_of(records)) or any(record.common_test for record in records):
        return None
    accuracies = {r.trial.seed: 100 * learning_accuracy(r.R) for r in records}
    if not accuracies or method.reference or method.infers or not accuracies.keys() <= joint.keys():
        return None
    unfair = [r.outputs == "own" or (r.trial.scenario == "class" and r.outputs is None) for r in records]
    if any(unfair) or not all(all(r.costs.steps) for r in records):
        return None
    is_far = all(100 * learning_accuracy(joint[seed].R) - value >= FAR for seed, value in accuracies.items())
    return fmean(accuracies.values()) if is_far else None


def build_answers(methods: Sequence[MethodRecords]) -> tuple[Table, ...]:
    """Return the table of answers from the first seed of each method, or nothing if no record has answers."""
    rows = []
    for method in methods:
        record = next((record for record in method.done if record.answers), None)
        if record is None or record.stream is None:
            continue
        names = record.stream.task_names or [str(i + 1) for i in range(len(record.stream.classes))]
        for task, name in enumerate(names):
            answer = next((answer for answer in record.answers if answer.task == task), None)
            if answer is not None:
                texts = (name, answer.prompt, answer.response, answer.learned, answer.end)
                cells = tuple(Cell(_shorten(text)) for text in texts)
                rows.append(Row(method.label, cells, reference=method.reference))
    return (Table(ANSWERS, tuple(Column(title, "text") for title in ANSWER_COLUMNS), tuple(rows)),) if rows else ()


def _shorten(text: str) -> str:
    """Return a text on one line. The middle of a long text is left out."""
    line = clean(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST // 2]} ... {line[-LONGEST // 2:]}"
