"""The error decomposition of methods: columns, a sentence for each method, and tables of confused tasks.

Parts are shares of a task's test samples, averaged over tasks like ACC, so they sum to 1 - ACC. docs/error-analysis.md
defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.method_records import MethodRecords
from clbench.report.analysis.names import NamedTasks
from clbench.report.columns import Measure, read_last_counts, share
from clbench.report.formatting import number, plural
from clbench.report.model import Cell, Column, Row, Table, Unit
from clbench.results.records import ErrorCounts, Probe, Record

TITLE = "Error decomposition"
LOST, PROBE = "points lost", "probe"
WITHIN, BIAS, CONFUSED = "wrong in its task", "bias of the head", "confusion of tasks"
MISGUIDED, OUTDONE, UNGUIDED = "wrong task guessed", "another task's output", "right only unguided"
PARTS = (WITHIN, BIAS, CONFUSED, MISGUIDED, OUTDONE, UNGUIDED)  # in the order in which bars stack them
NAMED = 4  # class names of a task in a table of confusions
RARE = (OUTDONE, UNGUIDED)
HEADINGS = {WITHIN: "within-task error", BIAS: "task-recency bias", CONFUSED: "inter-task confusion",
            MISGUIDED: "wrong task inferred", OUTDONE: "another task's output", UNGUIDED: "right only without task ID"}
FEW = 0.005  # a part that is smaller (as a share) is described as none
NOTHING = 0.0005  # methods that lose less (as a share), which is 0.0 points in words, have no sentence


def parts_of(counts: ErrorCounts) -> dict[str, float]:
    """Return the parts of the error in one row of R, by name. They sum to the error.

    Methods that infer the task (`counts.corrected` is empty) have other parts than the remaining methods.
    """
    def part(task_counts: Sequence[int]) -> float:
        return share(task_counts, counts.samples)

    within = 1 - part(counts.given)
    if counts.corrected:
        return {WITHIN: within, BIAS: part(counts.corrected) - part(counts.right),
                CONFUSED: part(counts.given) - part(counts.corrected)}
    return {WITHIN: within, MISGUIDED: part(counts.misguided), OUTDONE: part(counts.outdone),
            UNGUIDED: -part(counts.only_unguided)}


def _part(name: str) -> Callable[[Record, Record | None], float | None]:
    return lambda record, _: parts_of(counts).get(name) if (counts := read_last_counts(record)) else None


def _read_lost(record: Record, _: Record | None) -> float | None:
    return 1 - share(counts.right, counts.samples) if (counts := read_last_counts(record)) else None


def _probe_reader(of: Callable[[Probe], Sequence[int]]) -> Callable[[Record, Record | None], float | None]:
    def value(record: Record, _: Record | None) -> float | None:
        if record.probe is None or record.stream is None or not of(record.probe):
            return None
        return share(of(record.probe), record.stream.test_samples)

    return value


def measures(setting: Setting) -> list[Measure]:
    """Return the columns of a setting's table. Rare parts are included only if some record has them."""
    def column(title: str, unit: Unit, value: Callable[[Record, Record | None], float | None],
               heading: str = "") -> Measure:
        return Measure(Column(title, unit, heading=heading), value, TITLE, optional=True)

    nonzero_parts: set[str] = set()
    for record in setting.records:
        counts = read_last_counts(record)
        if counts:
            nonzero_parts |= {name for name, part in parts_of(counts).items() if part}
    end, before = _probe_reader(lambda probe: probe.end), _probe_reader(lambda probe: probe.learned)

    def drift(record: Record, joint: Record | None) -> float | None:
        learned_value, end_value = before(record, joint), end(record, joint)
        return None if learned_value is None or end_value is None else learned_value - end_value

    return [column(LOST, "points", _read_lost),
            *(column(name, "points", _part(name), HEADINGS[name]) for name in PARTS
              if name in nonzero_parts or name not in RARE),
            column(PROBE, "percent", _probe_reader(lambda probe: probe.together)),
            column("probe in its task", "percent", end, "probe within the task"),
            column("drift", "points", drift, "representation drift")]


@dataclass(frozen=True)
class Means:
    """A method's means over seeds: the error and its parts by name, the accuracies of the probe, and its replay."""

    parts: dict[str, float]
    lost: float
    probe: float | None
    probe_within: float | None
    drift: float | None
    replays: bool = False  # whether it stores samples

    @classmethod
    def of(cls, method: MethodRecords) -> Means | None:
        """Return the means of a method, or None if some seed has no counts or seeds differ in their parts."""
        last_counts = [counts for r in method.done if (counts := read_last_counts(r))]
        kinds = {tuple(parts_of(counts)) for counts in last_counts}
        if len(last_counts) != len(method.done) or len(kinds) != 1:
            return None

        def mean(counts_of: Callable[[Probe], Sequence[int]]) -> float | None:
            values = [_probe_reader(counts_of)(r, None) for r in method.done]
            known_values = [value for value in values if value is not None]
            return fmean(known_values) if len(known_values) == len(values) else None

        within, before = mean(lambda p: p.end), mean(lambda p: p.learned)
        parts = [parts_of(counts) for counts in last_counts]
        return cls({name: fmean(p[name] for p in parts) for name in parts[0]},
                   fmean(1 - share(c.right, c.samples) for c in last_counts), mean(lambda p: p.together), within,
                   None if within is None or before is None else before - within,
                   any(any(r.costs.replay_samples) for r in method.done))


def sentences(methods: Sequence[MethodRecords]) -> list[str]:
    """Return a sentence for each method on where most of its errors come from, and, except references, what to try.

    Methods without errors are left out.
    """
    means_by_method = [(m, means) for m in methods
                       if m.done and (means := Means.of(m)) is not None and means.lost >= NOTHING]
    return [f"{m.label} {_largest_part(means)[0] if m.reference else sentence(means)}" for m, means in means_by_method]


def sentence(means: Means) -> str:
    """Describe where a method loses most of its accuracy, and what to try.

    >>> sentence(Means({WITHIN: 0.07, BIAS: 0.52, CONFUSED: 0.19}, 0.78, None, None, None))
    'loses 78 points, 71 of them by confusing classes of different tasks (52 by task-recency bias). Try to align the \
head, or replay'
    """
    return ". ".join(_largest_part(means))


def _largest_part(means: Means) -> tuple[str, str]:
    """Return where a method loses most of its accuracy, and what to try."""
    parts, within = means.parts, means.parts[WITHIN]
    digits = 0 if means.lost >= 0.095 else 1

    def points(value: float) -> str:
        return f"{100 * value + 0.0:.{digits}f}"

    between = means.lost - within
    loses = f"loses {points(means.lost)} points"
    if within >= between:
        return f"{loses}, {points(within)} of them even if the task is given", _advise_within(means)
    if MISGUIDED in parts:
        if parts[MISGUIDED] < parts[OUTDONE]:
            return (f"{loses}, {points(parts[OUTDONE])} of them to outputs of other tasks although the task was "
                    "inferred correctly", "Try to let tasks compete in training")
        return (f"{loses}, {points(parts[MISGUIDED])} of them by inferring the wrong task",
                "Try another way to infer the task")
    bias = parts[BIAS]
    confused, by_bias = (between, points(bias)) if bias >= FEW else (parts[CONFUSED], "none")
    return (f"{loses}, {points(confused)} of them by confusing classes of different tasks ({by_bias} by task-recency "
            "bias)", _advise_between(means))


def _advise_within(means: Means) -> str:
    """Suggest how to reduce the within-task error."""
    within = means.parts[WITHIN]
    if means.probe_within is None:
        return "Try to learn each task better, or to forget less within it; --probe shows which of them helps"
    gain = means.probe_within - (1 - within)
    if gain >= within / 2:
        return (f"The features still separate its classes: a linear probe within the task has {100 * gain:.0f} points "
                "more. Try to refit the head")
    if means.drift is not None and means.drift >= within / 2:
        return (f"Representation drift costs a linear probe {100 * means.drift:.0f} points. Try to protect the "
                "features")
    return "Try to learn each task better, with more steps or another model"


def _advise_between(means: Means) -> str:
    """Suggest how to reduce the confusion of tasks."""
    confused, bias = means.lost - means.parts[WITHIN], means.parts[BIAS]
    replay = "more replay" if means.replays else "replay"
    if bias >= confused / 2:
        return f"Try to align the head, or {replay}"
    if means.probe is None:
        return f"Try {replay}, or --probe to check whether the features separate tasks"
    if means.probe - (1 - means.lost) >= confused / 2:
        return (f"A linear probe on its features loses only {100 * (1 - means.probe):.0f} points. Try to refit the "
                f"head, or {replay}")
    return "A linear probe is hardly better, so the features must separate tasks better"


def confusions(methods: Sequence[MethodRecords], named: NamedTasks | None) -> list[Table]:
    """Return a table for each method with the share of each task's samples that are assigned to each task."""
    tables = []
    for method in methods:
        last_counts = [counts for r in method.done if (counts := read_last_counts(r))]
        if not last_counts or len({len(counts.samples) for counts in last_counts}) != 1 or Means.of(method) is None:
            continue
        tasks = len(last_counts[0].samples)
        names = [_label_task(i, named) for i in range(tasks)]
        rows = tuple(Row(names[i], tuple(_mean_cell([c.tasks[i][j] / c.samples[i] for c in last_counts], "percent")
                                         for j in range(tasks))) for i in range(tasks))
        kind = "task of the winning output" if last_counts[0].corrected else "inferred task"
        tables.append(Table(f"{method.label}: {kind}, mean over {plural(len(last_counts), 'seed')}",
                            tuple(Column(name, "percent") for name in names), rows, corner="samples of"))
    return tables


def _mean_cell(values: Sequence[float], unit: Unit) -> Cell:
    return Cell(number(fmean(values), unit), fmean(values), n=len(values), values=tuple(values))


def _label_task(index: int, named: NamedTasks | None) -> str:
    """Return the label of a task, with the names of its classes if all seeds have the same."""
    if named is None or named.seed is not None:
        return f"task {index + 1}"
    names = named.tasks[index]
    suffix = ", ..." if len(names) > NAMED else ""
    return f"task {index + 1} ({', '.join(names[:NAMED])}{suffix})"


def rows_of(methods: Sequence[MethodRecords]) -> list[Table]:
    """Return the error decomposition after each task, a table for each method whose records have every row."""
    tables = []
    for method in methods:
        rows_by_seed = [r.errors for r in method.done]
        shapes = {tuple((c.learned, bool(c.corrected)) for c in rows) for rows in rows_by_seed}
        if len(shapes) != 1 or len(rows_by_seed[0]) < 2:
            continue
        names = [name for name in PARTS if name in parts_of(rows_by_seed[0][0])]
        rows = tuple(Row(f"after task {seed_counts[0].learned}", tuple(
            _mean_cell([value(c) for c in seed_counts], "points") for value in (
                lambda c: 1 - share(c.right, c.samples), *(_named_part(name) for name in names))))
            for seed_counts in zip(*rows_by_seed, strict=True))
        tables.append(Table(f"{method.label}: points lost after each task, of the tasks learned", tuple(
            Column(name, "points", heading=HEADINGS.get(name, "")) for name in (LOST, *names)), rows, corner="row"))
    return tables


def _named_part(name: str) -> Callable[[ErrorCounts], float]:
    return lambda counts: parts_of(counts)[name]
