"""Compare two records of one trial and the records of two runs. All functions are pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clbench.results import metrics
from clbench.results.curve import Curve
from clbench.results.records import Record

Matrix = Sequence[Sequence[float]]
_MOST = 60  # characters of a value that are shown


@dataclass(frozen=True)
class Changed:
    """A trial that both runs have, with a line for each fact in which they differ."""

    before: Record
    after: Record
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Changes:
    """The differences between two runs. Records are in the order of their run."""

    only_before: tuple[Record, ...]
    only_after: tuple[Record, ...]
    changed: tuple[Changed, ...]
    same: int  # trials that both hold with the same facts

    @property
    def any(self) -> bool:
        """Return whether the runs differ in their trials or in the facts of a trial."""
        return bool(self.only_before or self.only_after or self.changed)


def between(before: Sequence[Record], after: Sequence[Record]) -> Changes:
    """Return what changed from the records of one run to those of another. Each run has a trial at most once."""
    old, new = {r.key: r for r in before}, {r.key: r for r in after}
    pairs = [(record, new[key]) for key, record in old.items() if key in new]
    changed = tuple(Changed(a, b, facts) for a, b in pairs if (facts := tuple(differences(a, b))))
    return Changes(tuple(r for r in before if r.key not in new), tuple(r for r in after if r.key not in old), changed,
                   len(pairs) - len(changed))


def differences(before: Record, after: Record) -> Iterator[str]:
    """Return a line for each fact in which two records of a trial differ. Timings and provenance do not count."""
    for name in ("label", "reference"):
        yield from _plain(name, getattr(before, name), getattr(after, name))
    old, new = before.outcome(), after.outcome()
    for name in old:
        a, b = old[name], new[name]
        if a == b:
            continue
        if name in ("R", "task_inference") and a and b and _shape(a) == _shape(b):
            yield _matrix(name, a, b)
        elif name == "notes":
            yield from (f"note gone: {_short(n)}" for n in a if n not in b)
            yield from (f"new note: {_short(n)}" for n in b if n not in a)
        elif isinstance(a, dict) and isinstance(b, dict):
            for part in a:
                yield from _plain(f"{name}.{part}", a[part], b[part])
        else:
            yield from _plain(name, a, b)
    if line := curve_difference(before, after):
        yield line


def curve_difference(before: Record, after: Record) -> str | None:
    """Describe at how many points two curves of a trial differ on the same samples.

    Return None if they do not differ or if a record has no curve.
    """
    a, b = before.curve, after.curve
    if a is None or b is None or a.samples != b.samples:
        return None
    both = [(x, y) for old, new in zip(_points_of(a), _points_of(b), strict=False) for x, y in (
        (old[step], new[step]) for step in old.keys() & new.keys())]
    apart = [max(abs(p - q) / n for p, q, n in zip(x, y, a.samples, strict=False)) for x, y in both]
    count = sum(distance > 0 for distance in apart)
    return f"curve: {count} of {len(apart)} points, by up to {_points(max(apart))} points" if count else None


def _points_of(curve: Curve) -> list[dict[int, tuple[int, ...]]]:
    """Return the number of correct answers at each point of each task, by step. Step -1 is after consolidation."""
    return [dict(zip([*steps, -1], [*zip(*right, strict=True), tuple(after)], strict=True))
            for steps, right, after in zip(curve.steps, curve.right, curve.after, strict=False)]


def setting(before: Record, after: Record) -> Iterator[str]:
    """Return a line for each part of two trials' settings and methods that differs. Seeds are not compared."""
    old, new = (r.trial.model_dump(mode="json", exclude={"seed": True, "weights": {"path"}}) for r in (before, after))
    for name in dict.fromkeys([*old, *new]):
        a, b = (flat(of.get(name, {})) for of in (old, new))
        for part in dict.fromkeys([*a, *b]):
            yield from _plain(name + part, a.get(part, "absent"), b.get(part, "absent"))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the parts of a nested value by dotted names. Options are directly below the object that has them."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: inner for part, more in value.items()
            for key, inner in flat(more, name if part == "options" else f"{name}.{part}").items()}


def _matrix(name: str, a: Matrix, b: Matrix) -> str:
    """Describe the largest difference between two accuracy matrices, where it is, and how it changes ACC."""
    apart = {(i, j): abs(x - y) for i, (row, other) in enumerate(zip(a, b, strict=True))
             for j, (x, y) in enumerate(zip(row, other, strict=True))}
    most = max(apart, key=apart.__getitem__)
    cells = sum(distance > 0 for distance in apart.values())
    where = f"after task {most[0]}" if most[0] else "before training"
    line = (f"{name}: {cells} of {len(apart)} cells, by up to {_points(apart[most])} points "
            f"({where}, on task {most[1] + 1})")
    if name == "R" and len(a) == len(a[0]) + 1:
        line += f", ACC {100 * metrics.acc(a):.2f} -> {100 * metrics.acc(b):.2f} %"
    return line


def _points(distance: float) -> str:
    return f"{100 * distance:.2f}" if distance >= 5e-5 else f"{100 * distance:.1g}"


def _shape(matrix: Matrix) -> list[int]:
    return [len(row) for row in matrix]


def _plain(name: str, a: Any, b: Any) -> Iterator[str]:
    if a != b:
        yield f"{name}: {_short(a)} -> {_short(b)}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST else f"{text[:_MOST - 3]}..."
