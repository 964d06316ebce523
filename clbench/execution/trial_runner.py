"""Run trials: build stream, model and strategy, train, evaluate, and return records."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from clbench.accounting.callback import FlopsCallback
from clbench.accounting.estimator import CostEstimator, storage_warning
from clbench.core import identity, seeds
from clbench.core.device import out_of_memory, pick_device, room_for_samples
from clbench.core.errors import SpecError, WriteError
from clbench.core.registry import Registry, discover
from clbench.data.arrival import arrive
from clbench.data.own.instructions import FileContent, hashes_of, read_general
from clbench.data.samples import WriteCounts
from clbench.data.stream import Stream, load_stream
from clbench.data.stream_cache import depends_on_seed
from clbench.execution.trial_record import describe_training, failure_of, note_of_stack, record_of, settings_problem
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Progress, Trial
from clbench.persistence.callbacks import CheckpointCallback, SaveCallback, restore_optimizer_state
from clbench.persistence.strategy_state import SnapshotError
from clbench.results import provenance
from clbench.results.records import Provenance, Record
from clbench.strategy.base import Strategy
from clbench.training import precision
from clbench.training.building import (
    build_model,
    build_strategy,
    channels_last,
    check_model,
    prepare_for_model,
    require_kind,
    require_parts_fit,
    stream_info_of,
)
from clbench.training.callbacks.curve import CurveCallback
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.evaluation import EvaluationCallback
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.callbacks.language import language_callback
from clbench.training.callbacks.probe import describe_probe_cost
from clbench.training.costs import PeakMemory
from clbench.training.loop import TrainingLoop
from clbench.training.members import Unstackable, share_equal
from clbench.training.precision import Compiler
from clbench.training.replica import Replica
from clbench.training.stream_loop import StreamLoop


class TrialRunner:
    """Runs trials in this process, one after the other; the last stream stays in memory for the next trial."""

    def __init__(self, settings: ExecutionSettings, device: str, command: str, registry: Registry | None = None,
                 artifacts: Path | None = None, checkpoints: Path | None = None) -> None:
        """Set up the device (auto | cpu | cuda[:i] | mps); `command` is stored in the records.

        Strategies export files to `artifacts`. Long trials write checkpoints to `checkpoints`, and resume from them.
        Both folders have a subfolder for each trial, named by its key; None disables them. It raises a SpecError if
        losses are to be compiled and there is no compiler.
        """
        self.settings = settings
        self.artifacts = artifacts
        self.checkpoints = checkpoints
        self.device = pick_device(device)
        self.command = command
        self.registry = registry or discover()
        self.estimator = CostEstimator(self.registry)
        self._streams: dict[tuple[object, ...], tuple[Stream, WriteCounts]] = {}
        self._verified: set[object] = set()  # benchmarks whose data files were verified
        self._weights_hash = ""  # of the published weights that the last trial started from
        if settings.compile:
            Compiler(self.device).probe()

    def prepare(self, trial: Trial, label: str = "") -> list[str]:
        """Load a trial's stream (built and cached the first time), build its strategy as a check, and return notes.

        The notes give the number of training steps, what was cut in the stream and in general texts, the cost of the
        probe, and a warning if the strategy stores much. They name the method by `label`, or else by its name.

        Raises:
            ClbenchError: the data are missing, or the benchmark, model or options are incompatible.
        """
        self.note_code(trial)
        stream = self.stream(trial)
        if problem := settings_problem(stream, self.settings, self.general):
            raise SpecError(f"benchmark {trial.benchmark.name!r}: {problem}")
        name = label or trial.method.name
        language = language_callback(stream, trial, self.general)
        warning = storage_warning(name, self.build(trial, stream, check=True)[0], stream)
        is_probed = ErrorDecomposition.for_settings(self.settings, trial.scenario).probed
        cost = describe_probe_cost(stream) if is_probed else ""
        return [*describe_training(trial, name, stream, self.settings), *stream.notes,
                *(language.notes if language else ()), *filter(None, (cost, warning))]

    @cached_property
    def general(self) -> dict[str, FileContent]:
        """Return the files of general texts by name; they are read once."""
        return read_general(self.settings.general)

    def note_code(self, trial: Trial) -> None:
        """Store the state of a trial's code before it is imported, so that the record describes the code that ran."""
        for names in provenance.packages_of(trial, self.registry).values():
            for name in names:
                identity.note(name)

    def origin_of(self, trial: Trial) -> Provenance:
        """Call `note_code`, and return the provenance of a trial: its machine, device, command, code and versions."""
        self.note_code(trial)
        return provenance.collect(str(self.registry.origin("method", trial.method.name)), self.device, self.command,
                                  provenance.code_of(trial, self.registry, identity.hash_running))

    def run(self, planned: PlannedTrial, on_progress: Callable[[Progress], None] = lambda _: None) -> Record:
        """Run one trial and return its record, whose status says whether it succeeded.

        Raises:
            ClbenchError: bad input, as in `prepare`.
        """
        return self.run_stack([planned], on_progress)[0]

    def run_stack(self, planned: Sequence[PlannedTrial], on_progress: Callable[[Progress], None] = lambda _: None,
                  ) -> list[Record]:
        """Run trials that differ in seed and `Scalar` options only as one stack and return their records.

        Each record gets an equal share of the time. Trials that resume after different tasks run in separate stacks. A
        stack is halved if there is not enough memory to build or train it.

        Raises:
            ClbenchError: bad input, as in `prepare`.
        """
        origin = self.origin_of(planned[0].trial)
        checkpoints = None if self.checkpoints is None else CheckpointCallback(
            self.checkpoints, origin, ErrorDecomposition.for_settings(self.settings, planned[0].trial.scenario),
            general=hashes_of(self.general))
        replicas = self._replicas(planned, checkpoints)
        if replicas is None:
            return self._run_halves(planned, on_progress)
        tasks_learned = [replica.learned for replica in replicas]
        if len(set(tasks_learned)) > 1:
            del replicas
            by_key: dict[str, Record] = {}
            for level in sorted(set(tasks_learned)):
                part = [p for p, learned in zip(planned, tasks_learned, strict=True) if learned == level]
                by_key |= {record.key: record for record in self.run_stack(part, on_progress)}
            return [by_key[planned_trial.trial.key] for planned_trial in planned]
        memory = PeakMemory(self.device)
        try:
            self._train(replicas, on_progress, checkpoints, origin)
        except Unstackable as reason:
            starved, note = False, f"ran alone: {reason}"
        except (Exception, SystemExit) as error:  # a failing trial must not end the others
            if len(replicas) == 1:
                replicas[0].failure = failure_of(error, planned[0].trial, self.registry)
                return [record_of(replicas[0], origin, memory, self._weights_hash)]
            # Retry only after this block, because the exception's traceback references the tensors of the stack.
            starved = out_of_memory(error)
            note = note_of_stack(len(replicas), error)
        else:
            return [record_of(replica, origin, memory, self._weights_hash) for replica in replicas]
        del replicas
        if starved:
            return self._run_halves(planned, on_progress)
        return [r.model_copy(update={"notes": [*r.notes, note]}) for r in (self.run(p, on_progress) for p in planned)]

    def _run_halves(self, planned: Sequence[PlannedTrial], on_progress: Callable[[Progress], None]) -> list[Record]:
        """Run trials as two stacks, after freeing memory that reference cycles of the whole stack still hold."""
        gc.collect()
        half = len(planned) // 2
        return [*self.run_stack(planned[:half], on_progress), *self.run_stack(planned[half:], on_progress)]

    def _train(self, replicas: Sequence[Replica], on_progress: Callable[[Progress], None],
               checkpoints: CheckpointCallback | None, origin: Provenance) -> None:
        """Train replicas together. As a separate function, it leaves no references to their tensors when it ends."""
        for replica in replicas:
            on_progress(replica.progress)
        trial = replicas[0].trial
        with precision.allow_tf32(trial.trained_by):
            compiler = (Compiler(self.device, accumulates=trial.trained_by.accumulate > 1) if self.settings.compile
                        else None)
            run_replicas(replicas, self._callbacks(replicas[0], on_progress, checkpoints, origin), compiler,
                         self.settings.cache_bytes, self.settings.verify_caches)

    def _callbacks(self, first: Replica, on_progress: Callable[[Progress], None],
                   checkpoints: CheckpointCallback | None, origin: Provenance) -> list[Callback]:
        """Return the callbacks for the training of a replica and of the others in its stack."""
        trial = first.trial
        decomposition = ErrorDecomposition.for_settings(self.settings, trial.scenario)
        callbacks = [FlopsCallback(), self._curve(), EvaluationCallback(decomposition, self.settings.verify_caches),
                     language_callback(first.stream, trial, self.general),
                     ProgressCallback(on_progress, self.artifacts), checkpoints,
                     None if self.settings.keep == "nothing" or self.artifacts is None else
                     SaveCallback(self.artifacts, self.settings.keep == "state", origin, self.registry)]
        return [callback for callback in callbacks if callback is not None]

    def _curve(self) -> CurveCallback | None:
        """Return the callback that evaluates trials while they learn (`evaluate_every`), or None."""
        interval = self.settings.evaluate_every
        return None if interval is None else CurveCallback(interval, self.settings.evaluate_samples)

    def _replicas(self, planned: Sequence[PlannedTrial], checkpoints: CheckpointCallback | None
                 ) -> list[Replica] | None:
        """Return the replicas of trials, ready to train, or None if there is not enough memory for all of them."""
        try:
            replicas: list[Replica] = []
            for planned_trial in planned:
                replicas.append(self._replica(planned_trial, checkpoints))
                if len(replicas) > 1:  # so a pretrained backbone is in memory once
                    share_equal([replicas[0].strategy, replicas[-1].strategy])
            return replicas
        except Exception as error:
            if len(planned) == 1 or not out_of_memory(error):
                raise
        return None

    def _replica(self, planned: PlannedTrial, checkpoints: CheckpointCallback | None = None) -> Replica:
        """Return the replica of a trial, restored from its checkpoint if there is one, or else untrained."""
        def make_replica() -> Replica:
            strategy, notes = self.build(planned.trial, stream)
            replica = Replica.of(planned, strategy, stream, notes)
            if (curve := self._curve()) is not None:
                replica.curve = curve.new_curve(stream)
            return replica

        stream = self.stream(planned.trial)
        replica = make_replica()
        try:
            if checkpoints is not None:
                checkpoints.restore(replica)
        except SnapshotError as error:
            replica = make_replica()
            replica.add_note(f"started over after an interruption: {error}")
        return replica

    def stream(self, trial: Trial) -> Stream:
        """Return a trial's stream on the device; it is loaded again if a failed trial has changed its samples."""
        seeded = trial.validation or trial.arrival.changes or depends_on_seed(trial.benchmark, self.registry)
        seed = trial.seed if seeded else 0
        key = (str(trial.benchmark), trial.scenario, trial.validation, seed, trial.model.options.get("size"),
               self.registry.model(trial.model.name).channels, trial.preprocessing, trial.arrival)
        if key not in self._streams or self._streams[key][1].differ:
            self._streams.clear()  # only one at a time, because streams are large and trials are sorted by stream
            verify = self.settings.verify_data and key[0] not in self._verified
            loaded = load_stream(trial.benchmark, trial.scenario, seed, self.settings.data_dir, self.registry,
                                 trial.validation, verify)
            loaded = arrive(loaded, trial.arrival, trial.scenario, seed, trial.benchmark.name)
            self._verified.add(key[0])
            stream = prepare_for_model(loaded, trial, self.registry).to(self.device, room_for_samples(self.device))
            self._streams[key] = stream, WriteCounts(part for task in stream.tasks for part in (task.train, task.test))
        return self._streams[key][0]

    def build(self, trial: Trial, stream: Stream, check: bool = False) -> tuple[Strategy, list[str]]:
        """Return a trial's untrained strategy on the device, and notes on its model and itself.

        With `check`, the model is first run on one sample.
        """
        with seeds.scope(trial.seed, "init"):
            require_kind(trial.model, stream, self.registry)
            model, notes = build_model(trial.model, trial.weights, stream.input_shape, stream.classes, self.registry)
        if check:
            check_model(model, trial.model, stream, self.registry)
        self._weights_hash = model.weights_hash
        stream_info = stream_info_of(stream, trial.scenario, trial.seed, trial.weights is not None)
        with seeds.scope(trial.seed, "strategy"):
            strategy = build_strategy(trial.method, channels_last(model.to(self.device)), stream_info, self.registry)
        require_parts_fit(trial, strategy, stream)
        return strategy.to(self.device), [*notes, *strategy.notes]


class ProgressCallback(Callback):
    """Reports progress after each task, and lets strategies export files that stay after the run."""

    def __init__(self, on_progress: Callable[[Progress], None], artifacts: Path | None) -> None:
        """Report to `on_progress`, and export to a subfolder of `artifacts` for each trial; None disables exports."""
        self.on_progress = on_progress
        self.artifacts = artifacts

    def on_task(self, training: Training, task: int) -> None:
        """Export, then report. A WriteError is raised if an export cannot be written."""
        for replica in training.replicas:
            if self.artifacts is not None and replica.stream.ends_at(task):
                folder = self.artifacts / replica.trial.key
                try:
                    replica.strategy.export(folder, replica.task(task))
                except OSError as error:
                    raise WriteError(f"cannot write files to {folder}: {error}; free some space") from error
            self.on_progress(replica.progress)


def run_replicas(replicas: Sequence[Replica], callbacks: Sequence[Callback], compiler: Compiler | None = None,
                 cache_bytes: int | None = None, verify_caches: bool = False) -> None:
    """Train replicas together on their streams, from the first task that they have not learned; see `TrainingLoop`."""
    first, recipe = replicas[0], replicas[0].trial.trained_by
    loop = (StreamLoop(replicas, recipe, callbacks, first.learned, compiler, cache_bytes) if first.stream.hidden else
            TrainingLoop(replicas, recipe, callbacks, compiler, cache_bytes, verify_caches))
    loop.train_step = restore_optimizer_state([replica.strategy for replica in replicas], recipe,
                                              [replica.optimizer_state for replica in replicas])
    loop.run(first.learned)
