"""Progress output: live bars on a terminal, and elsewhere a line for each finished trial and after long silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from clbench.core.objective import ACCURACY, METRICS, Metric
from clbench.execution.time_left import TimeLeft, is_comparable, kind_of
from clbench.execution.workers.plan import Listener
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.workload import WorkEstimate
from clbench.report.formatting import plural
from clbench.results.records import Record

EVERY = 30.0  # seconds without output after which a plain display prints the state of the run
SHOWN_TRIALS = 3  # largest number of running trials in this line
SHOWN_LINES = 12  # of a failed trial's traceback; the record has all lines


class Tally:
    """The progress of a run and its timing."""

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Start with none of the trials `todo` finished."""
        self.total = len(todo)
        self.done = 0
        self.shares: dict[str, float] = {}  # the finished share of each running trial
        self.left = TimeLeft(todo)

    def start(self, key: str) -> None:
        """Count a trial as running; the clock starts with the first."""
        now = time.monotonic()
        self.shares[key] = 0.0
        self.left.started(key, now)

    def progress(self, event: Progress) -> None:
        """Update the finished share of a trial."""
        self.shares[event.key] = event.task / event.tasks
        self.left.progress(event, time.monotonic())

    def finish(self, key: str, whole: bool = True) -> None:
        """Count a trial as done; `whole` is whether it was trained as a whole."""
        self.shares.pop(key, None)
        self.done += 1
        self.left.finished(key, time.monotonic(), whole)

    @property
    def share(self) -> float:
        """Return the finished share of the run, from 0 to 1."""
        return (self.done + sum(list(self.shares.values()))) / self.total

    def times(self) -> str:
        """Return the elapsed time and an estimate of the remaining time, as text."""
        if self.left.began is None:
            return "getting ready"
        now = time.monotonic()
        remaining = self.left.seconds(now) if self.done < self.total else None
        word = "roughly" if remaining is not None and not self.left.measured else "about"
        estimate = "" if self.done == self.total else f", {word} {'?' if remaining is None else clock(remaining)} left"
        return f"{clock(now - self.left.began)} elapsed{estimate}"


class Display(Listener):
    """Base class of both displays, which prints messages as plain lines. A context manager."""

    def __init__(self, console: Console, todo: Sequence[PlannedTrial]) -> None:
        """Show the trials `todo` on a console."""
        self.console = console
        self.tally = Tally(todo)
        several = len({p.trial.scenario for p in todo}) > 1
        self.names = {p.trial.key: f"{p.label} {f'{p.trial.scenario} ' if several else ''}seed {p.trial.seed}"
                      for p in todo}
        self.metrics = {p.trial.key: METRICS[p.metric] for p in todo}
        self.explained: set[tuple[str, str, str]] = set()
        self.records: Sequence[Record] = ()  # all records of the run folder

    def __enter__(self) -> Display:
        """Return the display."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Do nothing."""

    def say(self, text: str, style: str = "") -> None:
        """Print a line without markup or wrapping."""
        self.console.print(Text(text, style), soft_wrap=True)

    def run_started(self, planned: Sequence[PlannedTrial], todo: Sequence[PlannedTrial]) -> None:
        """Print which trials will run."""
        trials = [p.trial for p in planned]
        scenarios = list(dict.fromkeys(t.scenario for t in trials))
        counts = [plural(len({p.label for p in planned}), "method"), plural(len({t.seed for t in trials}), "seed"),
                  *([plural(len(scenarios), "scenario")] if len(scenarios) > 1 else [])]
        is_full_grid = len({p.label for p in planned}) * len({t.seed for t in trials}) * len(scenarios) == len(trials)
        done_count = len(planned) - len(todo)
        self.say(f"{trials[0].benchmark.name}, scenario {' and '.join(scenarios)}"
                 f"{f', {100 * trials[0].validation:g}% validation' if trials[0].validation else ''}: "
                 + (f"{' x '.join(counts)} = " if is_full_grid else f"{', '.join(counts)}, ")
                 + f"{plural(len(trials), 'trial')}{f', {done_count} already done' if done_count else ''}")

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0, again: bool = False) -> None:
        """Print the device, workers and threads of the run, unless `again`, and use them to estimate the time left."""
        place = f"{plural(workers, 'worker')} x {plural(threads or 1, 'thread')}" if workers else "in this process"
        if not again:
            self.say(f"{place} on {device}" + f", on {plural(nodes, 'node')} of the Ray cluster" * bool(nodes), "dim")
        self.tally.left.ready(workers)
        self.tally.left.known(r for r in self.records if is_comparable(r, device, threads))

    def note(self, text: str) -> None:
        """Print a note."""
        self.say(text, "dim")

    def known(self, records: Sequence[Record]) -> None:
        """Store the records of earlier trials; comparable ones are used to estimate the remaining time."""
        self.records = records

    def take_estimate(self, planned: PlannedTrial, estimate: WorkEstimate) -> None:
        """Use the estimated work of a trial to estimate the remaining time."""
        self.tally.left.take_estimate(kind_of(planned.trial), estimate)

    def started(self, planned: PlannedTrial) -> None:
        """Count the trial as running."""
        self.tally.start(planned.trial.key)

    def progress(self, event: Progress) -> None:
        """Count the finished share of the trial."""
        self.tally.progress(event)

    def finished(self, record: Record) -> None:
        """Count the trial, and print its failure if it has one."""
        self.tally.finish(record.key, record.status == "done")
        if failure := record.failure:
            place = f" ({failure.place})" if failure.place else ""
            self.say(f"{self.names[record.key]} {record.status}: {failure.type}: {failure.message}{place}", "bold red")
            failure_key = (record.label, failure.type, failure.message)
            if failure.traceback and failure_key not in self.explained:
                self.explained.add(failure_key)
                self.say("\n".join("    " + line for line in failure.traceback.splitlines()[-SHOWN_LINES:]), "red")


class PlainDisplay(Display):
    """Prints a line for each finished trial, and one on the running trials after `EVERY` seconds without output."""

    def __init__(self, console: Console, todo: Sequence[PlannedTrial]) -> None:
        """Show the trials `todo` as lines."""
        super().__init__(console, todo)
        self.running: dict[str, Progress | None] = {}  # last event by key
        self.last = time.monotonic()  # when the last line was printed
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="clbench-progress", daemon=True)

    def __enter__(self) -> PlainDisplay:
        """Start the thread that prints a line on the running trials after `EVERY` seconds without output."""
        self.last = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Stop the thread."""
        self.over.set()
        self.thread.join()

    def say(self, text: str, style: str = "") -> None:
        """Print a line, and store the time."""
        super().say(text, style)
        self.last = time.monotonic()

    def _watch(self) -> None:
        while not self.over.wait(max(self.last + EVERY - time.monotonic(), 0.01)):
            if time.monotonic() >= self.last + EVERY:
                self.say(self.where())

    def where(self) -> str:
        """Return the progress of the run and of its running trials."""
        running = list(self.running.items())
        words = [f"{self.names[key]} {describe_progress(event, self.metrics[key]) if event else 'starting'}"
                 for key, event in running[:SHOWN_TRIALS]]
        words += [f"{len(running) - SHOWN_TRIALS} more running"] if len(running) > SHOWN_TRIALS else []
        return f"[{self.tally.done}/{self.tally.total}] {'; '.join([*words, self.tally.times()])}"

    def started(self, planned: PlannedTrial) -> None:
        """Add the trial to the running ones."""
        super().started(planned)
        self.running[planned.trial.key] = None

    def progress(self, event: Progress) -> None:
        """Store the last event of the trial."""
        super().progress(event)
        self.running[event.key] = event

    def finished(self, record: Record) -> None:
        """Print the outcome of the trial and the progress of the run."""
        super().finished(record)
        self.running.pop(record.key, None)
        result = record.result if record.status == "done" else record.status
        self.say(f"[{self.tally.done}/{self.tally.total}] {self.names[record.key]}: {result}, {self.tally.times()}")


class State(ProgressColumn):
    """The text after a bar. The text of the whole run is made at each drawing, because its times change."""

    def __init__(self, tally: Tally) -> None:
        """Store the tally, which gives the text of the whole run."""
        super().__init__()
        self.tally = tally

    def render(self, task: Task) -> Text:
        """Return the text."""
        state = task.fields.get("state")
        return Text(f"{self.tally.done}/{self.tally.total} done, {self.tally.times()}" if state is None else state)


class LiveDisplay(Display):
    """Draws a bar for the whole run and one for each running trial."""

    def __init__(self, console: Console, todo: Sequence[PlannedTrial]) -> None:
        """Show the trials `todo` on a terminal."""
        super().__init__(console, todo)
        self.bars = Bars(TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                         State(self.tally), console=console, transient=True)
        self.whole = self.bars.add_task("trials", total=1.0, state=None)
        self.rows: dict[str, TaskID] = {}

    def __enter__(self) -> LiveDisplay:
        """Start drawing."""
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Remove the bars."""
        self.bars.stop()

    def started(self, planned: PlannedTrial) -> None:
        """Add a bar for the trial, or replace the bar of an earlier attempt."""
        super().started(planned)
        if (key := planned.trial.key) in self.rows:
            self.bars.remove_task(self.rows[key])
        self.rows[key] = self.bars.add_task(self.names[key], total=1.0, state="starting")

    def progress(self, event: Progress) -> None:
        """Update the bars."""
        super().progress(event)
        self.bars.update(self.rows[event.key], completed=event.task / event.tasks,
                         state=describe_progress(event, self.metrics[event.key]))
        self.bars.update(self.whole, completed=self.tally.share)

    def finished(self, record: Record) -> None:
        """Remove the trial's bar."""
        super().finished(record)
        if record.key in self.rows:
            self.bars.remove_task(self.rows.pop(record.key))
        self.bars.update(self.whole, completed=self.tally.share)


def display(console: Console, todo: Sequence[PlannedTrial]) -> Display:
    """Return the display for a console: live if it can redraw lines, plain otherwise."""
    return LiveDisplay(console, todo) if todo and redraws(console) else PlainDisplay(console, todo)


def redraws(console: Console) -> bool:
    """Return whether lines can be redrawn: on no file, even with FORCE_COLOR, and on no terminal with TERM=dumb."""
    return console.is_interactive and console.file.isatty()


def describe_progress(event: Progress, metric: Metric = ACCURACY) -> str:
    """Return the progress of a trial as text.

    >>> describe_progress(Progress("key", 1, 5, 0.912))
    'task 2/5, accuracy 91.2'
    """
    score_text = "" if event.score is None else f", {metric.label} {metric.text(event.score)}"
    return f"task {min(event.task + 1, event.tasks)}/{event.tasks}{score_text}"


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss.

    >>> clock(75), clock(3600)
    ('1:15', '1:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
