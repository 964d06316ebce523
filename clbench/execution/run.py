"""Run an experiment: plan it, find the missing trials, run them, store records, write the report."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from clbench.core.compat import usable_cores
from clbench.core.entry_points import package_of
from clbench.core.errors import ClbenchError, StoreError
from clbench.core.files import hold_lock, run_folder_name
from clbench.core.registry import Registry
from clbench.core.user_code import format_error
from clbench.execution import deciding, interrupts, reuse
from clbench.execution.claims import TrialClaims
from clbench.execution.reuse import Note, OnStale, StalenessReport, check_inputs, check_stale, ignore_message, refusal
from clbench.execution.workers.plan import Listener, Relay, WorkerPlan
from clbench.execution.workers.protocol import Start
from clbench.experiment.execution_settings import Executor
from clbench.experiment.plan import plan, refuse_doubles, trials_of_shard
from clbench.experiment.spec import Spec
from clbench.experiment.trial import PlannedTrial
from clbench.report.analysis.names import describe_other_settings
from clbench.results import looks, tracking
from clbench.results.diff import group_by_method
from clbench.results.provenance import code_of, describe_changes
from clbench.results.records import Record
from clbench.results.store import Problem, Store, other_weights

FORMATS = ("md", "html")  # of the reports that `write_report` writes
EXECUTORS: dict[Executor, str] = {"local": "clbench.execution.workers.process",  # modules with a function `execute`
                                  "ray": "clbench.execution.workers.ray_cluster"}
TRANSIENT_FAILURES = ("WorkerDied", "OutOfMemoryError", "WriteError")  # resuming from the checkpoint may succeed


@dataclass
class Experiment:
    """The trials of a spec, their run folder, the records that it already has, and which of these are stale."""

    spec: Spec
    registry: Registry
    store: Store
    planned: list[PlannedTrial]
    records: dict[str, Record]  # every record of the folder by key, kept up to date while trials run
    problems: list[Problem] = field(default_factory=list)
    trackers: dict[str, tracking.Tracker] = field(default_factory=dict)
    on_stale: OnStale = "refuse"  # what to do with stale records
    staleness: StalenessReport = field(default_factory=StalenessReport)
    most: int = 0  # largest number of trials if seeds are added until decided, or else 0
    failed_keys: set[str] = field(default_factory=set)  # keys of trials that failed in an earlier round of this run

    @property
    def missing(self) -> list[PlannedTrial]:
        """Return the trials to run: those without a usable record, and those whose record will be replaced."""
        replaced_keys = {*self.staleness.lacking, *(self.staleness.reasons if self.on_stale == "rerun" else ())}
        usable = {key for key, record in self.records.items() if record.status != "failed" and key not in replaced_keys}
        left_out = usable | self.failed_keys
        return [p for p in self.planned if p.trial.key not in left_out]

    def refuse_stale(self) -> None:
        """Raise a `StaleError` if records are stale and the user has not chosen what to do with them."""
        if self.staleness.reasons and self.on_stale == "refuse":
            raise refusal(self.staleness.reasons, self.records, self.store.directory)

    def results(self) -> list[Record]:
        """Return the available records of the experiment's own trials, in the order of the methods."""
        labels = list(dict.fromkeys(p.label for p in self.planned))
        trials = sorted(self.planned, key=lambda p: labels.index(p.label))
        return [self.records[p.trial.key] for p in trials if p.trial.key in self.records]

    def study(self) -> list[Record]:
        """Return all records of the folder, the experiment's own first."""
        records = self.results()
        keys = {record.key for record in records}
        return [*records, *group_by_method([r for r in self.records.values() if r.key not in keys])]


def prepare(spec: Spec, registry: Registry, out: Path, log: str | Iterable[str] = (),
            shard: str | None = None, on_stale: OnStale = "refuse", note: Note = ignore_message) -> Experiment:
    """Plan an experiment, read its run folder and create the experiment loggers `log`; nothing is written.

    `shard` selects a part (`2/8`); None means all. `on_stale` decides what to do with stale records. `note` is called
    with messages about slow work.

    Raises:
        SpecError: the experiment cannot run as written, or the library of an experiment logger is missing.
        StoreError: the folder cannot be read, or the file of a record of this experiment is not a valid record.
    """
    trials = plan(spec, registry)
    refuse_doubles(trials)
    if spec.until:
        first_trials = deciding.initial_trials(spec, trials, out, shard)
        experiment = load_run(spec, first_trials, registry, out, on_stale, note)
        experiment.most = deciding.count_most_trials(spec, trials)
    else:
        experiment = load_run(spec, trials_of_shard(trials, shard), registry, out, on_stale, note)
    experiment.trackers = tracking.start(log, registry, out)
    return experiment


def load_run(spec: Spec, planned: list[PlannedTrial], registry: Registry, out: Path,
             on_stale: OnStale = "refuse", note: Note = ignore_message) -> Experiment:
    """Read the run folder of planned trials, and check which of its records are stale or lack outputs.

    Raises:
        StoreError: as `prepare`.
    """
    store = Store(out)
    records, problems = store.read()
    record_paths = {store.path(p.trial.key) for p in planned}
    in_the_way = [p for p in problems if p.path in record_paths]
    if in_the_way:
        raise StoreError("\n".join(f"{p}, so the trial's record cannot be written there: move the file away and run "
                                   "again" for p in in_the_way))
    records_by_key = {r.key: r for r in records}
    staleness = check_stale(planned, records_by_key, registry, spec.execution.data_dir, spec.execution.verify_data,
                            note)
    reuse.add_missing_outputs(staleness, planned, records_by_key, spec.execution, store.artifacts, on_stale == "keep")
    staleness.notes += describe_other_settings(planned, records)
    return Experiment(spec, registry, store, planned, records_by_key, problems, on_stale=on_stale, staleness=staleness)


def execute(experiment: Experiment, listener: Listener, *, command: str, later: bool = False) -> list[Record]:
    """Run the missing trials, store each record as it arrives, and return the records of all trials.

    Args:
        experiment: the experiment from `prepare`; its spec's `execution` has the execution settings.
        listener: receives the events of the run.
        command: the command that the user typed, stored in the records.
        later: whether this is a later round of a run; the first round has already reported the earlier records.

    Raises:
        StaleError: records of the folder are stale, and `on_stale` is "refuse"; nothing has been run or written then.
        StoreError: the folder cannot be written.
        ClbenchError: bad input that is found only when the data are read; no trial has run then.
    """
    if not later:  # a later round keeps what other processes have run with other code
        experiment.refuse_stale()
    check_inputs([p.trial for p in experiment.missing], experiment.spec.execution, experiment.registry)
    new_folders = (store := experiment.store).check_writable()
    is_new_log = not (store.directory / looks.FILE).exists()
    experiment.planned = looks.ask(store.directory, experiment.planned, experiment.spec.seeds, experiment.records)
    missing = experiment.missing
    listener.known([*experiment.records.values()])
    keeper = RecordKeeper(experiment, listener)
    if not later:
        listener.run_started(experiment.planned, missing)
        keeper.relabel()
        for note in experiment.staleness.notes:
            listener.note(note)
        for record in experiment.results():
            keeper.track(record)
    if missing:
        try:
            worker_plan = plan_workers(experiment, command, keeper.claim)
            executor = importlib.import_module(EXECUTORS[worker_plan.settings.executor])
            with closing(keeper.claims):
                while missing:
                    executor.execute(missing, worker_plan, keeper)
                    missing = keeper.claims.wait()
        except ClbenchError:
            looks.forget(store, is_new_log)
            store.forget(new_folders)  # after bad input, no new folders remain
            raise
    return experiment.results()


def plan_workers(experiment: Experiment, command: str,
                 claim: Callable[[PlannedTrial], bool] = lambda _: True) -> WorkerPlan:
    """Return a plan with the numbers of workers and threads, which are chosen if the user has not set them.

    They depend on all trials of the experiment and not only on the missing ones, because a resumed run must give the
    same records as an uninterrupted one. A sum over two threads may differ in its last bit from a sum over one.
    """
    settings, device = experiment.spec.execution, experiment.spec.device
    cores, on_cluster = usable_cores(), settings.executor == "ray"
    trials = experiment.most or len(experiment.planned)
    workers, threads, alone = settings.workers, settings.threads or (1 if on_cluster else None), None
    if workers is None:
        workers = trials if on_cluster else min(cores, trials) if device in ("auto", "cpu") else 1
    if threads is None and workers > 0:
        threads = max(1, cores // workers)
        alone = cores if settings.workers is None else None
    start = Start(settings=settings, device=device, command=command, threads=threads, alone=alone,
                  artifacts=experiment.store.artifacts.absolute(), checkpoints=experiment.store.checkpoints.absolute(),
                  plugins=tuple(experiment.registry.files))
    return WorkerPlan(start, workers, shrink=settings.workers is None, registry=experiment.registry, claim=claim)


class RecordKeeper(Relay):
    """Stores each record, sends it to the experiment loggers, and forwards all events to another listener."""

    def __init__(self, experiment: Experiment, listener: Listener) -> None:
        """Wrap the listener that events are forwarded to."""
        super().__init__(listener)
        self.experiment = experiment
        self.failing: set[str] = set()
        self.planned = {planned.trial.key: planned for planned in experiment.planned}
        self.contents: dict[str, str] = {}  # hashes of published weights
        for record in experiment.records.values():
            other_weights(record, self.contents)
        self.claims = TrialClaims(experiment.store, dict(experiment.records), self._add_external, listener.note)

    def claim(self, planned: PlannedTrial) -> bool:
        """Lock a trial and return whether to run it; if so, the files of its stale result are removed."""
        if (acquired := self.claims.take(planned)) and planned.trial.key in self.experiment.staleness.reasons:
            self.experiment.store.clear(planned.trial.key)
        return acquired

    def finished(self, record: Record) -> None:
        """Store the record before forwarding the event."""
        if problem := other_weights(record, self.contents):
            raise StoreError(f"{record.label} seed {record.trial.seed} is not kept: {problem}; choose another --out")
        old_record, failure = self.experiment.records.get(record.key), record.failure
        record = reuse.merge_records(self.experiment.staleness, old_record, record, self.note)
        record = self._labeled(record) if record is old_record else record
        with interrupts.defer_signals():
            self.experiment.store.write(record)
            if failure is None or failure.type not in TRANSIENT_FAILURES:
                self.experiment.store.remove_checkpoint(record.key)
            self.claims.release(record.key)
            self.experiment.records[record.key] = record
            self.experiment.staleness.mark_current(record.key)
        self.track(record)
        self.listener.finished(record)

    def relabel(self) -> None:
        """Give the records of finished trials the labels of this experiment; trials that will run get them later."""
        records = self.experiment.records
        to_run = {planned.trial.key for planned in self.experiment.missing}
        for key in [key for key in self.planned if key in records and key not in to_run]:
            if self._labeled(records[key]) != records[key]:
                with self.claims.hold_trial(key):
                    if record := self.experiment.store.get(key):  # it may have changed since the start
                        records[key] = self._relabel(record)

    def _labeled(self, record: Record) -> Record:
        """Return a record with the label that its trial has in this experiment, marked if it is stale."""
        planned = self.planned[record.key]
        return record.model_copy(update={"label": planned.label, "reference": planned.reference,
                                         "searched": planned.searched or record.searched,
                                         "until": planned.until or record.until,
                                         "seen": list(planned.seen) or record.seen,
                                         "stale": self.experiment.staleness.reasons.get(record.key, [])})

    def _relabel(self, record: Record) -> Record:
        """Return a record with the label that its trial has in this experiment, and store it if it differs."""
        labeled = self._labeled(record)
        if labeled != record:
            self.experiment.store.write(labeled)
        return labeled

    def _add_external(self, record: Record) -> None:
        """Add a record that another process has written to the folder, and mark it if it is stale.

        A stale record is kept. Otherwise two processes with different code would overwrite each other's records.
        """
        experiment = self.experiment
        reasons = describe_changes(record, code_of(record.trial, experiment.registry))
        experiment.staleness.mark_current(record.key)
        experiment.staleness.reasons |= {record.key: reasons} if reasons else {}
        if note := reuse.note_on_external(record, reasons, experiment.spec.execution, experiment.store.artifacts):
            self.note(note)
        record = experiment.records[record.key] = self._relabel(record)
        self.track(record)
        self.listener.finished(record)

    def track(self, record: Record) -> None:
        """Send a record to every experiment logger; a failure is reported once per logger and does not stop the run."""
        for name, tracker in self.experiment.trackers.items():
            try:
                tracker.log(record)
            except Exception as error:  # a failure of third-party code must not lose records
                if name not in self.failing:
                    self.failing.add(name)
                    package = package_of(self.experiment.registry.tracker(name).tracker)
                    self.listener.note(f"tracker {name} failed: {format_error(error, package)}")


def write_report(experiment: Experiment) -> list[Path]:
    """Write the report of the whole run folder, its figures first, in all `FORMATS`, and return their paths."""
    from clbench import report

    folder = experiment.store.directory
    with hold_lock(folder / ".report.lock"):  # of processes that share the folder, the last one has read all records
        experiment.records = {record.key: record for record in experiment.store.read()[0]}
        full_report = report.build(experiment.study(), registry=experiment.registry)
        looks.note(folder, experiment.study())
        report.write_figures(full_report, folder)
        return [report.write(full_report, folder, experiment.registry.report_format(name)) for name in FORMATS]


def default_out(spec: Spec, source: Path | None) -> Path:
    """Return the default run folder of an experiment, named after its file, or else after its benchmark."""
    return Path("runs") / run_folder_name(source, spec.benchmark.name)
