"""How long trials of each kind take: as those of the kind took, else as their work and the others' say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from clbench.experiment.trial import PlannedTrial, Trial
from clbench.experiment.workload import Foreseen, Speed, Workload, workload
from clbench.results.provenance import machine
from clbench.results.records import Record

Kind = tuple[tuple[str, ...], str]  # setting and method: trials that differ in their seed only
USUAL = 5e7  # FLOPs that take as long as a step does without any, before anything says how many
EXCHANGE = [10.0 ** (power / 4) for power in range(16, 45)]  # of which that is taken which explains best what was seen
ENOUGH = 4  # kinds with which it is looked for
RELUCTANCE = 0.02  # to leave what was measured: spread of logarithms for each factor e


def kind_of(trial: Trial) -> Kind:
    """Return what trials share that differ in their seed only."""
    return trial.setting, trial.row


def alike(record: Record, device: str, threads: int | None) -> bool:
    """Tell whether a record was made on this machine and as a run with such workers makes its own."""
    origin = record.provenance
    return (origin.machine == machine() and (origin.device == "cpu") == (device == "cpu")
            and threads in (None, origin.threads))


def recorded(record: Record) -> tuple[Workload | None, float] | None:
    """Return the work of a finished trial, where its record counts it, and its seconds; None where it did not end."""
    costs, timings, stream = record.costs, record.timings, record.stream
    if record.status != "done" or stream is None or not timings.evaluate:
        return None
    seconds = sum(map(sum, (timings.train, timings.consolidate, timings.evaluate, timings.curve)))
    tasks = len(stream.train_samples)
    if not len(costs.steps) == len(costs.train_flops) == len(costs.inference_flops) == tasks:
        return None, seconds
    return workload(costs.steps, costs.train_flops, costs.inference_flops, stream.train_samples,
                    stream.test_samples), seconds


@dataclass
class Paces:
    """What is known of how long the trials of a run take, by kind.

    A kind that was seen takes what it took. Otherwise the same method in another scenario says it, times the ratio of
    their work; otherwise the work does: FLOPs and steps, at the speed at which the work of what was seen went, or at
    that of the model's own steps where nothing was. The work is what was counted of the method, on shapes or in a
    trial that has ended; before that, what plain fine-tuning would do.
    """

    models: dict[Kind, str] = field(default_factory=dict)  # benchmark and model of each kind
    works: dict[Kind, Workload] = field(default_factory=dict)  # as they were counted
    plain: dict[Kind, Workload] = field(default_factory=dict)  # of plain fine-tuning
    speed: Speed | None = None
    earlier: dict[Kind, list[float]] = field(default_factory=dict)  # seconds of trials in the folder
    records: int = 0  # how many those are

    def add(self, planned: Iterable[PlannedTrial]) -> None:
        """Take the trials of the run."""
        for one in planned:
            self.models[kind_of(one.trial)] = model_of(one.trial)

    def foreseen(self, kind: Kind, foreseen: Foreseen, counted: bool) -> None:
        """Take what is known of a kind beforehand: `counted` of the method itself, or else of plain fine-tuning."""
        if foreseen.workload is not None:
            (self.works if counted else self.plain)[kind] = foreseen.workload
        self.speed = foreseen.speed or self.speed

    def known(self, records: Iterable[Record]) -> None:
        """Take records that were made as this run makes its own: their times, and what their trials had to do."""
        models = set(self.models.values())
        for record in records:
            kind, found = kind_of(record.trial), recorded(record)
            if found is None or model_of(record.trial) not in models:
                continue
            self.records += 1
            self.earlier.setdefault(kind, []).append(found[1])
            self.models.setdefault(kind, model_of(record.trial))
            self.ended(kind, record)

    def ended(self, kind: Kind, record: Record) -> None:
        """Take what a trial of a kind had to do."""
        found = recorded(record)
        if found is not None and found[0] is not None:
            self.works[kind] = found[0]

    def exchange(self, seen: Mapping[Kind, float]) -> float:
        """Return how many FLOPs take as long as a step does without any, by what was seen of kinds."""
        usual = USUAL if self.speed is None else max(self.speed.step * self.speed.flops, 1.0)
        told = [(self.works[kind], seconds) for kind, seconds in seen.items() if kind in self.works and seconds > 0]
        if len(told) < ENOUGH:
            return usual

        def spread(exchange: float) -> float:
            # Away from what was measured only for what that explains.
            return pstdev(math.log(seconds / work.amount(exchange)) for work, seconds in told
                          ) + RELUCTANCE * abs(math.log(exchange / usual))

        best: float = min([usual, *EXCHANGE], key=spread)
        return best

    def share(self, kind: Kind, task: int, tasks: int) -> float:
        """Return which share of a trial's work is over when so many of its tasks are learned."""
        work = self.works.get(kind) or self.plain.get(kind)
        if work is None or len(work.steps) != tasks:
            return task / tasks
        return work.share(task, self.exchange({}))

    def seconds(self, seen: Mapping[Kind, float]) -> dict[Kind, float]:
        """Return the seconds of a whole trial of each kind; of none where nothing tells.

        Args:
            seen: seconds of kinds that this run has measured.
        """
        earlier = {kind: fmean(took) for kind, took in self.earlier.items()}
        both = [kind for kind in seen if kind in earlier]
        drift = sum(seen[k] for k in both) / sum(earlier[k] for k in both) if both else 1.0
        found = {**{kind: took * drift for kind, took in earlier.items()}, **seen}
        exchange = self.exchange(found)
        counted, plain = ({kind: amount for kind, work in works.items() if (amount := work.amount(exchange))}
                          for works in (self.works, self.plain))
        by_row = {(self.models[kind], kind[1]): kind for kind in found if kind in self.models}
        told: dict[Kind, float] = {}
        for kind, model in self.models.items():
            near = by_row.get((model, kind[1]))
            if kind in found:
                told[kind] = found[kind]
            elif near is not None:
                told[kind] = found[near] * next((amounts[kind] / amounts[near] for amounts in (counted, plain)
                                                 if kind in amounts and near in amounts), 1.0)
            else:
                amounts = counted if kind in counted else plain
                if kind in amounts and (rate := self._rate(found, amounts)) is not None:
                    told[kind] = rate * amounts[kind]
        if told:  # what cannot be counted takes what the others take
            mean = fmean(told.values())
            told |= {kind: mean for kind in self.models if kind not in told}
        return told

    def _rate(self, found: Mapping[Kind, float], amounts: Mapping[Kind, float]) -> float | None:
        """Return the seconds that a unit of work takes: of what was seen, else of the model's own steps."""
        both = [kind for kind in found if kind in amounts]
        if both:
            return sum(found[k] for k in both) / sum(amounts[k] for k in both)
        return self.speed.step if self.speed else None


def model_of(trial: Trial) -> str:
    """Return what two trials must share for the one's speed to tell the other's."""
    return f"{trial.benchmark} {trial.model} {trial.validation:g}"
