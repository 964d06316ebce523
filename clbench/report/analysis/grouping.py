"""Records as a report looks at them: by setting, by method, and a figure of each by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clbench.core.errors import StoreError
from clbench.report.analysis import notes
from clbench.report.columns import Measure
from clbench.report.formatting import clean
from clbench.results.records import Record


@dataclass(frozen=True)
class Method:
    """The records of one method in one setting."""

    label: str
    records: tuple[Record, ...]
    seeds: tuple[int, ...]  # those of the whole section

    @property
    def done(self) -> list[Record]:
        """Return the records with a result, by seed."""
        return [r for r in self.records if r.status == "done"]

    @property
    def complete(self) -> bool:
        """Tell whether all seeds of the setting gave a result."""
        return len(self.done) == len(self.seeds)

    @property
    def reference(self) -> bool:
        """Tell whether this is a bound such as naive or joint."""
        return self.records[0].reference

    @property
    def missing(self) -> list[int]:
        """Return the seeds without a record."""
        return sorted(set(self.seeds) - {r.trial.seed for r in self.records})

    @property
    def infers(self) -> bool:
        """Tell whether it had to infer the task of a test sample."""
        return any(r.task_inference for r in self.records)

    @property
    def state(self) -> str:
        """Return `3`, or `1/3; 1 diverged, 1 missing`."""
        if self.complete:
            return str(len(self.seeds))
        counts = [(sum(r.status == s for r in self.records), s) for s in ("diverged", "failed")]
        counts.append((len(self.missing), "missing"))
        return f"{len(self.done)}/{len(self.seeds)}; " + ", ".join(f"{n} {what}" for n, what in counts if n)


@dataclass(frozen=True)
class Setting:
    """All methods of one setting; references last, the others as they appeared."""

    title: str
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    records: tuple[Record, ...]

    def values(self, measure: Measure) -> dict[str, dict[int, float | None]]:
        """Return a figure of each method by seed, for the seeds that gave a result."""
        joint = self.joint
        return {m.label: {r.trial.seed: measure.value(r, joint.get(r.trial.seed)) for r in m.done}
                for m in self.methods}

    def compared(self, measure: Measure, also: Iterable[str] = ()) -> dict[str, dict[int, float]]:
        """Return the same without references but those named, and without methods for which a seed has no number."""
        taken = {m.label for m in self.methods if not m.reference} | set(also)
        return {label: {s: v for s, v in found.items() if v is not None}
                for label, found in self.values(measure).items()
                if label in taken and found and None not in found.values()}

    @property
    def joint(self) -> dict[int, Record]:
        """Return joint training's record of each seed."""
        return {r.trial.seed: r for m in reversed(self.methods) if m.records[0].trial.method.name == "joint"
                for r in m.done}

    @property
    def eligible(self) -> set[str]:
        """Return the methods that may be the best: those with all their seeds, references left out."""
        return {m.label for m in self.methods if m.complete and not m.reference}


def by_setting(records: Sequence[Record]) -> list[Setting]:
    """Return the settings of records in the order in which they appear, each with a title of its own.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in _distinct(records):
        groups.setdefault(record.trial.setting, []).append(record)
    if not groups:
        raise StoreError("no records to report; run an experiment first (clbench run --methods lora,ewc)")
    names = [notes.title(group[0]) for group in groups.values()]
    titles = [f"{name} ({i} of {len(names)})" if names.count(name) > 1 else name  # differ in recipe, weights or options
              for i, name in enumerate(names, start=1)]
    return [_setting(*found) for found in zip(titles, groups.values(), strict=True)]


def _setting(title: str, records: Sequence[Record]) -> Setting:
    seeds = tuple(sorted({r.trial.seed for r in records}))
    return Setting(title, seeds, tuple(_methods(records, seeds)), tuple(records))


def _distinct(records: Iterable[Record]) -> list[Record]:
    """Return each trial's record once."""
    found: dict[str, Record] = {}
    for record in records:
        first = found.setdefault(record.key, record)
        if first is not record and first.outcome() != record.outcome():
            raise StoreError(f"trial {record.key} ({clean(record.label)}, seed {record.trial.seed}) has two records "
                             "that disagree; keep one of them")
    return list(found.values())


def _methods(records: Sequence[Record], seeds: tuple[int, ...]) -> list[Method]:
    """Group records by method; labels that two methods share become the methods' full names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.trial.method), []).append(record)
    labels = [clean(group[0].label) for group in groups.values()]
    methods = [Method(label if labels.count(label) == 1 else clean(full),
                      tuple(sorted(group, key=lambda r: r.trial.seed)), seeds)
               for label, (full, group) in zip(labels, groups.items(), strict=True)]
    return sorted(methods, key=lambda m: m.reference)  # stable
