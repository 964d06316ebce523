"""Run one trial: stream, model, strategy, training, evaluation -> Record."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

from clbench.core import identity, seeds
from clbench.core.device import out_of_memory, pick_device, room_for_samples, synchronize
from clbench.core.registry import Registry, discover
from clbench.data import cache
from clbench.data.arrival import arrive
from clbench.data.stream import Stream, load_stream
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import PlannedTrial, Progress, Trial
from clbench.results import provenance
from clbench.results.records import Failure, Record
from clbench.results.staleness import code_of, packages_of
from clbench.strategy.base import Strategy, Task
from clbench.training import numerics, probe
from clbench.training.anatomy import Anatomy
from clbench.training.curve import Watch
from clbench.training.lifecycle import Trained, learn_task
from clbench.training.numerics import Compiler
from clbench.training.prediction_cache import PredictionCache
from clbench.training.sharing import share_equal
from clbench.training.stacking import Unstackable
from clbench.training.streaming import trainer_of
from clbench.training.trainer import Trainer
from clbench.training.trials.building import (
    build_model,
    build_strategy,
    channels_last,
    check_model,
    for_model,
    require_kind,
    require_no_parts,
    world_of,
)
from clbench.training.trials.checkpoint import Unresumable
from clbench.training.trials.costs import Clock, PeakMemory, measure
from clbench.training.trials.facts import failure_of, record_of
from clbench.training.trials.keeper import Keeper
from clbench.training.trials.keeping import Foresight
from clbench.training.trials.optimizer_state import restore_optimizer_state
from clbench.training.trials.resume import Checkpoints
from clbench.training.trials.rows import record_row
from clbench.training.trials.state import TrialState
from clbench.training.trials.watching import look_after, note_looks, watched, words


class TrialRunner:
    """Runs trials in this process, one after the other; streams stay loaded between them."""

    def __init__(self, settings: ExecutionSettings, device: str, command: str, registry: Registry | None = None,
                 artifacts: Path | None = None, checkpoints: Path | None = None) -> None:
        """Run on `device` (auto | cpu | cuda[:i] | mps), as the settings say; records keep `command`.

        What strategies export goes to `artifacts`, a folder for each trial by its key; None: nowhere. So do long
        trials' checkpoints to `checkpoints`; trials that have one there go on from it. SpecError where losses are to be
        compiled and there is no compiler.
        """
        self.settings = settings
        self.artifacts = artifacts
        self.checkpoints = checkpoints
        self.device = pick_device(device)
        self.command = command
        self.registry = registry or discover()
        self.foresight = Foresight(self.registry)
        self._streams: dict[tuple[object, ...], Stream] = {}
        self._verified: set[object] = set()  # benchmarks whose data files were read, if they are to be
        self._weights_hash = ""  # of the published weights that the last trial started from
        if settings.compile:
            Compiler(self.device).probe()

    def prepare(self, trial: Trial, label: str = "") -> list[str]:
        """Get a trial's stream (built and cached the first time), build its strategy once, and return notes.

        They say how many steps its tasks have, what the stream has to say, and what it will keep if that is much. They
        call the method by its label, or else by its name.

        Raises:
            ClbenchError: the data are absent, or the benchmark, model or options do not go together.
        """
        self.note_code(trial)
        stream = self.stream(trial)
        strategy, _ = self.build(trial, stream, check=True)
        name = label or trial.method.name
        warning = self.foresight.warning(trial, name, strategy, stream)
        cost = probe.cost(stream) if Anatomy.wanted(self.settings, trial.scenario).probed else ""
        return [*words(trial, name, stream, self.settings), *stream.notes, *filter(None, (cost, warning))]

    def note_code(self, trial: Trial) -> None:
        """Note the state of a trial's code before it is imported: the record tells what ran, not what came later."""
        for names in packages_of(trial, self.registry).values():
            for name in names:
                identity.note(name)

    def run(self, planned: PlannedTrial, on_progress: Callable[[Progress], None] = lambda _: None) -> Record:
        """Run one trial and return its record, whose status tells whether it went through.

        Raises:
            ClbenchError: bad input, as in `prepare`.
        """
        return self.run_stack([planned], on_progress)[0]

    def run_stack(self, planned: Sequence[PlannedTrial], on_progress: Callable[[Progress], None] = lambda _: None,
                  ) -> list[Record]:
        """Run trials that differ in seed and `Scalar` options only as one stack and return their records.

        Their times are equal shares. Those that go on from checkpoints after different tasks make several stacks. One
        that finds no memory, to be built or to train, is halved.

        Raises:
            ClbenchError: bad input, as in `prepare`.
        """
        plugin = str(self.registry.origin("method", planned[0].trial.method.name))
        self.note_code(planned[0].trial)
        code = code_of(planned[0].trial, self.registry, identity.running)
        origin = provenance.collect(plugin, self.device, self.command, code)
        checkpoints = Checkpoints(self.checkpoints, origin) if self.checkpoints else None
        members = self._members(planned, checkpoints)
        if members is None:
            return self._halved(planned, on_progress)
        if len(levels := sorted({member.learned for member in members})) > 1:
            parts = [[m.planned for m in members if m.learned == level] for level in levels]
            del members
            found = {r.key: r for part in parts for r in self.run_stack(part, on_progress)}
            return [found[one.trial.key] for one in planned]
        memory = PeakMemory(self.device)
        try:
            with numerics.products(planned[0].trial.trained_by):
                compiler = Compiler(self.device) if self.settings.compile else None
                run_members(members, on_progress, self.artifacts, checkpoints, compiler, self.settings.cache_bytes,
                            Keeper.wanted(self.settings.keep, self.artifacts, origin, self.registry),
                            self.settings.verify_caches)
        except Unstackable as reason:
            starved, note = False, f"ran alone: {reason}"
        except Exception as error:  # a failing trial must not end the others; its traceback is kept in the record
            if len(members) == 1:
                members[0].failure = failure_of(error, planned[0].trial, self.registry)
                return [record_of(members[0], origin, memory, self._weights_hash)]
            # What holds on to the stack's tensors must be gone before parts of it are tried: the traceback too.
            starved = out_of_memory(error)
            note = f"ran alone: the stack of {len(members)} trials failed with {type(error).__name__}: {error}"
        else:
            return [record_of(member, origin, memory, self._weights_hash) for member in members]
        del members
        if starved:
            return self._halved(planned, on_progress)
        records = [self.run(one, on_progress) for one in planned]
        return [r.model_copy(update={"notes": [*r.notes, note]}) for r in records]

    def _halved(self, planned: Sequence[PlannedTrial], on_progress: Callable[[Progress], None]) -> list[Record]:
        """Run trials as two stacks, after collecting what reference cycles still hold of the whole one."""
        gc.collect()
        half = len(planned) // 2
        return [*self.run_stack(planned[:half], on_progress), *self.run_stack(planned[half:], on_progress)]

    def _members(self, planned: Sequence[PlannedTrial], checkpoints: Checkpoints | None) -> list[TrialState] | None:
        """Return trials ready to train, None if there is not enough memory for all of them."""
        try:
            members: list[TrialState] = []
            for one in planned:
                members.append(self._member(one, checkpoints))
                if len(members) > 1:  # a pretrained base is in memory once
                    share_equal([members[0].strategy, members[-1].strategy])
            return members
        except Exception as error:
            if len(planned) == 1 or not out_of_memory(error):
                raise
        return None

    def _member(self, planned: PlannedTrial, checkpoints: Checkpoints | None = None) -> TrialState:
        """Return a trial with its stream and strategy, restored from its checkpoint if there is one, else untrained."""
        def untrained() -> TrialState:
            strategy, notes = self.build(planned.trial, stream)
            return TrialState(planned, strategy, stream, notes,
                              watched=watched(planned.trial, strategy, stream, self.settings),
                              predictions=PredictionCache(planned.trial.seed, self.settings.verify_caches),
                              anatomy=Anatomy.wanted(self.settings, planned.trial.scenario))

        stream = self.stream(planned.trial)
        member = untrained()
        try:
            if checkpoints is not None:
                checkpoints.restore(member)
        except Unresumable as error:
            member = untrained()
            member.notes.append(f"started over after an interruption: {error}")
        return member

    def stream(self, trial: Trial) -> Stream:
        """Return a trial's stream on the device."""
        seeded = trial.validation or trial.arrival.changes or cache.depends_on_seed(trial.benchmark, self.registry)
        seed = trial.seed if seeded else 0
        size, channels = trial.model.options.get("size"), self.registry.model(trial.model.name).channels
        key = (str(trial.benchmark), trial.scenario, trial.validation, seed, size, channels, trial.preprocessing,
               trial.arrival)
        if key not in self._streams:
            self._streams.clear()  # one at a time: trials come sorted, and streams are large
            verify = self.settings.verify_data and key[0] not in self._verified
            loaded = load_stream(trial.benchmark, trial.scenario, seed, self.settings.data_dir, self.registry,
                                 trial.validation, verify)
            loaded = arrive(loaded, trial.arrival, trial.scenario, seed, trial.benchmark.name)
            self._verified.add(key[0])
            self._streams[key] = for_model(loaded, trial, self.registry).to(self.device, room_for_samples(self.device))
        return self._streams[key]

    def build(self, trial: Trial, stream: Stream, check: bool = False) -> tuple[Strategy, list[str]]:
        """Return a trial's strategy, untrained and on the device, and notes on how it was made.

        With `check` the model is run on one sample first.
        """
        with seeds.scope(trial.seed, "init"):
            require_kind(trial.model, stream, self.registry)
            model, notes = build_model(trial.model, trial.weights, stream.input_shape, stream.classes, self.registry)
        if check:
            check_model(model, trial.model, stream.input_shape, self.registry)
        self._weights_hash = model.weights_hash
        world = world_of(stream, trial.scenario, trial.seed, trial.weights is not None)
        with seeds.scope(trial.seed, "strategy"):
            strategy = build_strategy(trial.method, channels_last(model.to(self.device)), world, self.registry)
        require_no_parts(trial, strategy)
        return strategy.to(self.device), [*notes, *strategy.notes]


def run_members(members: Sequence[TrialState], on_progress: Callable[[Progress], None], artifacts: Path | None = None,
                checkpoints: Checkpoints | None = None, compiler: Compiler | None = None,
                cache_bytes: int | None = None, keeper: Keeper | None = None, verify_caches: bool = False) -> None:
    """Lead the members of a stack through their streams together, task by task; one that diverges drops out.

    After each task the strategies export what is to outlive the run to `artifacts`, if there is such a folder. Losses
    are compiled if there is a compiler. A phase may store `cache_bytes`, which are all verified if `verify_caches`. A
    keeper keeps the final models.
    """
    first = members[0]
    trainer = trainer_of([m.strategy for m in members], first.trial.trained_by, [m.trial.seed for m in members],
                         [m.stream for m in members], first.learned, compiler, cache_bytes,
                         Watch.over([m.watched for m in members]), verify_caches)
    for member in members:
        on_progress(member.progress)
        if not member.R:
            record_row(member, learned=0)
    if first.learned:
        trainer.engine = restore_optimizer_state(trainer.strategies, first.trial.trained_by,
                                                 [m.optimizer_state for m in members])
    alive = list(members)
    for index in range(first.learned, len(first.stream.tasks)):
        alive = train_task(alive, trainer, index)
        for member in alive:
            look_after(member, index)
            member.add_kept(measure(member.strategy))
            record_row(member, learned=index + 1)
            if artifacts is not None and (not member.stream.hidden or member.learned == len(member.stream.tasks)):
                member.strategy.export(artifacts / member.trial.key, member.learner.task(index))
            on_progress(member.progress)
        if not alive:
            return
        trainer.keep([member.strategy for member in alive])
        if checkpoints is not None and index + 1 < len(first.stream.tasks):
            checkpoints.save(alive, trainer.engine)
    if keeper is not None:
        keeper.keep(alive, trainer.engine)


def train_task(members: Sequence[TrialState], trainer: Trainer, index: int) -> list[TrialState]:
    """Train the members on task `index`, note what it cost, and return those that did not diverge."""
    device = members[0].stream.tests.y.device
    ready = done = Clock.now()

    def fit(tasks: list[Task]) -> list[Trained]:
        nonlocal ready, done
        ready = Clock.now()
        trained = trainer.fit(tasks)
        synchronize(device)
        done = Clock.now()
        for member, result in zip(members, trained, strict=True):
            for note in trainer.compiler.notes if trainer.compiler else []:
                member.add_note(note)
            member.costs.trainable.append(result.trainable)
            member.last_losses.append(list(result.last_losses))
            looked = note_looks(member)
            member.timings.train.append((done.wall - ready.wall) / len(members) - looked.wall)
            member.timings.train_cpu.append((done.cpu - ready.cpu) / len(members) - looked.cpu)
            if result.diverged is not None:
                member.failure = Failure(type="DivergedError", message=str(result.diverged))
        return trained

    began = Clock.now()
    trained = learn_task([member.learner for member in members], index, fit)
    synchronize(device)
    ended = Clock.now()
    for member, result in zip(members, trained, strict=True):
        member.costs.steps.append(result.steps)
        member.costs.train_flops.append(result.flops)
    alive = [member for member, result in zip(members, trained, strict=True) if result.diverged is None]
    for member in alive:
        member.timings.consolidate.append((ready.wall - began.wall + ended.wall - done.wall) / len(members))
        member.timings.consolidate_cpu.append((ready.cpu - began.cpu + ended.cpu - done.cpu) / len(members))
    return alive
