"""The records of one method in one setting, and the facts about the method that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

from clbench.core.objective import METRICS
from clbench.experiment.search import Searched
from clbench.report.analysis.levels import CHANCE, INFERS, OUTPUTS, RECIPE, STALE, UNDERFIT, at_chance, underfit
from clbench.report.formatting import clean, options_of, plain
from clbench.report.model import Result
from clbench.results.records import Record


@dataclass(frozen=True)
class MethodRecords:
    """The records of one method in one setting."""

    label: str  # what tables call it: its display name, or its id
    records: tuple[Record, ...]  # by seed
    seeds: tuple[int, ...]  # of the whole setting; where seeds were added, of the method itself
    id: str = ""  # what `--methods` calls it

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
        return len(self.done) == len(self.seeds)

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
        return (UNDERFIT if underfit(self.done) else "") + (CHANCE if at_chance(self.done) else "")

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
        return f"{len(self.done)}/{len(self.seeds)}; " + ", ".join(f"{n} {what}" for n, what in counts if n)

    @cached_property
    def result(self) -> Result:
        """Return the raw numbers of the records with a result."""
        done = self.done
        return Result(
            label=self.label, strategy=self.strategy, reference=self.reference, complete=self.complete,
            seeds=tuple(r.trial.seed for r in done), R=tuple(tuple(map(tuple, r.R)) for r in done),
            trainable=tuple(tuple(r.costs.trainable) for r in done),
            parameters=tuple(tuple(sum(roles.values()) for roles in r.costs.parameters) for r in done),
            bytes=tuple(tuple(sum(roles.values()) for roles in r.costs.bytes) for r in done),
            curves=tuple(r.curve for r in done if r.curve),
            options=tuple((name, plain(value)) for name, value in options_of(self.records[0].trial).items()),
            seconds=tuple(sum(r.timings.train) + sum(r.timings.consolidate) for r in done),
            task_names=names_of_tasks(done), common_test=any(r.common_test for r in done),
            scores={name: tuple(tuple(map(tuple, r.scores[name])) for r in done)
                    for name in METRICS if done and all(name in r.scores for r in done)})


def names_of_tasks(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the names of tasks without classes; nothing if tasks have no names, or if records differ in them."""
    names = {tuple(map(clean, r.stream.task_names)) for r in records if r.stream}
    return next(iter(names)) if len(names) == 1 else ()


def done_records(methods: Iterable[MethodRecords]) -> list[Record]:
    """Return the records with a result of several methods, method by method."""
    return list(chain.from_iterable(m.done for m in methods))
