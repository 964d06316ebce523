"""What a reader must know before relying on a section: at most five sentences, the most serious first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.learning import far_below, still_falling
from clbench.report.analysis.marks import CHANCE, UNDERFIT
from clbench.report.analysis.method_records import MethodRecords
from clbench.report.formatting import in_words, listed

SHOWN, NAMES = 5, 3  # sentences, and names in a sentence


def cautions(setting: Setting) -> list[str]:
    """Return the cautions of a section. If there are more than five, the last one says how many are left out."""
    every = list(_every(setting))
    if len(every) <= SHOWN:
        return every
    more = len(every) - SHOWN + 1
    return [*every[:SHOWN - 1], f"The notes below the table have {more} further cautions."]


def _every(setting: Setting) -> Iterator[str]:
    """Yield all cautions, the most serious first."""
    methods = [m for m in setting.methods if m.done]
    candidates = [m for m in methods if not m.reference]
    if added := sorted({r.trial.seed for r in setting.records if r.seen}):
        yield (f"{_seeds(added)} {'was' if len(added) == 1 else 'were'} added after an interim analysis; the tests do "
               "not account for that.")
    if partial := [m.label for m in setting.methods if not m.complete]:
        yield f"Not every seed gave a result: {in_words(partial, NAMES)}."
    for mark, words in ((CHANCE, "Not better than chance"), (UNDERFIT, "Underfit (the training loss stayed high)")):
        if marked := [m.label for m in methods if mark in m.cautions]:
            yield f"{words}: {in_words(marked, NAMES)}."
    if behind := [m.label for m in methods if far_below(m, setting.joint) is not None and UNDERFIT not in m.cautions]:
        yield f"Underfit (20 or more points below joint training just after learning): {in_words(behind, NAMES)}."
    if untuned := [m.label for m in setting.untuned]:
        tuned = sum(bool(m.searched) for m in candidates)
        others = "the other method" if tuned == 1 else f"the other {tuned} methods"
        yield f"Untuned, unlike {others}: {in_words(untuned, NAMES)}." if tuned else "No method was tuned."
    if falling := [m.label for m in methods if still_falling(m.done)]:
        yield f"Not converged when a task's steps ended: {_among(falling, methods)}."
    if setting.baseline is None:
        yield "There is no fine-tuning baseline (naive), so it is not known which methods prevent forgetting at all."
    yield from _mixtures(setting)


def _mixtures(setting: Setting) -> Iterator[str]:
    """Yield a sentence if the records come from several machines or commits."""
    commits, machines = (len(set(values)) for values in (
        [r.provenance.git for r in setting.records if r.provenance.git],
        [(r.provenance.device, r.provenance.machine) for r in setting.records]))
    parts = [f"{count} {name}" for count, name in ((commits, "commits"), (machines, "machines")) if count > 1]
    if parts:
        yield f"The records come from {in_words(parts, 2)}."


def _among(labels: Sequence[str], methods: Sequence[MethodRecords]) -> str:
    """Name some of the methods, or all methods except the others if the others are few."""
    rest = [m.label for m in methods if m.label not in labels]
    if len(labels) > NAMES and len(rest) < NAMES:
        return f"all except {in_words(rest, NAMES)}" if rest else "all methods"
    return in_words(labels, NAMES)


def _seeds(seeds: list[int]) -> str:
    return f"{'Seed' if len(seeds) == 1 else 'Seeds'} {listed(seeds)}"


