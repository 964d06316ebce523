"""The first lines of a section: what its records decide, what they do not, and what to be careful about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from clbench.experiment.until import BEST, UntilDecided
from clbench.report.analysis.grouping import MARKS, MethodRecords, Setting
from clbench.report.analysis.learning import far_below, still_falling
from clbench.report.analysis.paired_tests import looks
from clbench.report.decided import Against, Compared, Facts, Verdict
from clbench.report.formatting import listed, named
from clbench.report.model import Cell, Column
from clbench.results.paired import MOST_SEEDS
from clbench.results.records import Record

Line = tuple[str, str]  # what it is about, and what is said
TOP, SHOWN = 5, 8  # methods that are named with their accuracies; names in a list
SOON = 5  # times the seeds there are: what more would decide is not worth waiting for
MORE = f"more than {MOST_SEEDS:,} needed"
NO_HELP = "more seeds will not help: {:,} test samples"


def headline(setting: Setting, found: Facts) -> tuple[Line, ...]:
    """Return the first lines of a section; only what there is to say."""
    trial = setting.records[0].trial
    lines = [(trial.scenario.capitalize(), _accuracies(found)), ("Front of accuracy", _fronts(found))]
    if found.baseline and found.baseline.pairs:
        lines.append((f"Below {found.baseline.other}", _suspects(found, found.baseline, "worse", "below")))
        if found.baseline.other == setting.named_baseline:
            lines.append((f"Above {setting.marked(found.baseline.other)}",
                          _suspects(found, found.baseline, "better", "above")))
    if found.joint and found.joint.pairs:
        lines.append((f"Above {setting.marked(found.joint.other)}", _suspects(found, found.joint, "better", "above")))
    if found.until:
        counts = ", ".join(f"{m.label} {len(m.seeds)}" for m in setting.methods[:SHOWN])
        more = f" and {len(setting.methods) - SHOWN} more" if len(setting.methods) > SHOWN else ""
        lines.append(("Seeds", f"added until decided, {found.until.first} to at most {found.until.most}: {counts}"
                      + more))
    lines += [("Not decided", _undecided(setting, found)), ("Decided by", _basis(found)),
              ("Mind", ". ".join(text[:1].upper() + text[1:] for text in _warnings(setting)))]
    return tuple((about, f"{text}.") for about, text in lines if text)


def against_column(setting: Setting, found: Compared) -> tuple[Column, list[Cell]]:
    """Return the column of each method's difference to the baseline, with its verdict in a word."""
    told = {pair.method: pair for pair in found.pairs}
    return Column(f"against {found.other}", "points"), [_cell(told.get(m.label), setting) for m in setting.methods]


def _cell(pair: Against | None, setting: Setting) -> Cell:
    if pair is None:
        return Cell("")
    loser = {"better": pair.other, "worse": pair.method}.get(pair.verdict, "")
    text = f"{100 * pair.difference:+.1f} {pair.verdict} {setting.cautions.get(loser, '')}".strip()
    return Cell(text, pair.difference, pair.half_width, pair.seeds, low=pair.low, high=pair.high)


def _accuracies(found: Facts) -> str:
    own = [label for label in found.accuracy if label not in found.references]
    main = [c.other for c in (found.baseline, found.joint) if c]
    names = _with_accuracy(found, own[:TOP])
    if found.best and found.best.decided and own[0] == found.best.method:
        names[0] += " (shown to be the best)"
    told = ", ".join(names) + (f" (the best {TOP} of {len(own)})" if len(own) > TOP else "")
    shown = ", ".join(_with_accuracy(found, [label for label in main if label not in own[:TOP]]))
    return "; ".join(filter(None, [told, shown]))


def _with_accuracy(found: Facts, labels: Iterable[str]) -> list[str]:
    return [f"{label} {100 * found.accuracy[label]:.1f} {found.cautions.get(label, '')}".strip() for label in labels]


def _fronts(found: Facts) -> str:
    """Say which methods no other beats in both accuracy and a cost, by rising cost; costs with one front share it."""
    costs: dict[tuple[str, ...], list[str]] = {}
    for title, labels in ((title, labels) for title, labels in found.fronts.items() if labels):
        costs.setdefault(labels, []).append(title)
    return "; ".join(f"against {' and '.join(titles)} {named(labels, SHOWN)}" for labels, titles in costs.items())


def _suspects(found: Facts, compared: Compared, verdict: Verdict, side: Literal["above", "below"]) -> str:
    """Say which methods are shown to be where they should not be, and which are there on every seed without that.

    Those that are shown to be worse have the marks that caution against their rows.
    """
    of = len(compared.pairs)
    shown = sorted((p for p in compared.pairs if p.verdict == verdict), key=lambda p: -abs(p.difference))
    likely = [p.method for p in compared.pairs if p.verdict == "open" and p.every_seed == side and p.seeds > 1]
    cautions = found.cautions if verdict == "worse" else {}
    text = _list([f"{p.method} {100 * p.difference:+.1f} {cautions.get(p.method, '')}".strip() for p in shown], of)
    return f"{text}; on every seed, but not shown: {_list(likely, of)}" if likely else text


def _list(names: Sequence[str], of: int) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names) or "none"
    return f"{len(names)} of {of} ({named(names, SHOWN)})" if len(names) < of else f"all {of}"


def _all_but(names: Sequence[str], methods: Sequence[MethodRecords]) -> str:
    """Name the methods that are not among these, if they are few; else nothing."""
    rest = [m.label for m in methods if m.label not in names]
    return f"all but {', '.join(rest)}" if 0 < 3 * len(rest) < len(names) else ""


def _among(names: Sequence[str], methods: Sequence[MethodRecords]) -> str:
    """Name some of the methods, or the others where these are few."""
    return _all_but(names, methods) or _list(names, len(methods))


def _undecided(setting: Setting, found: Facts) -> str:
    said = []
    if found.until:
        return _still_open(setting, found, found.until)
    seeds = len(setting.seeds)
    best = found.best
    if best and best.open:
        others = len(best.beaten) + len(best.equal) + len(best.open) + len(best.untested)
        more = NO_HELP.format(best.limited) if best.limited else _needed(best.needed)
        said.append(f"the best ({_counted(seeds)}; {more}): {best.method} leads, not told from "
                    f"{_list(best.open, others)}")
    if best and best.untested:
        said.append(f"the best: {best.method} leads, not tested against {named(best.untested, SHOWN)}, because every "
                    "seed gave the same result")
    if found.baseline and (left := found.undecided):
        limited = {p.method: p.limited for p in found.baseline.pairs if p.limited}
        would = [_would_decide([n for method, n in left.items() if method not in limited], seeds)]
        if limited:
            whom = f"for {named([*limited], SHOWN)} " if would[0] else ""
            would.append(whom + NO_HELP.format(max(limited.values())))
        said.append(f"against {found.baseline.other} ({'; '.join(filter(None, [_counted(seeds), *would]))}): "
                    f"{_list(list(left), len(found.baseline.pairs))}")
    if found.baseline and (same := found.baseline.labels("not tested")):
        said.append(f"against {found.baseline.other}, because every seed gave the same result: "
                    f"{_list(same, len(found.baseline.pairs))}")
    return ". ".join(text if i == 0 else text[:1].upper() + text[1:] for i, text in enumerate(said))


def _would_decide(needed: Sequence[int | None], seeds: int) -> str:
    """Say about how many seeds would decide comparisons of which each needs so many; nothing where there are none."""
    if not needed:
        return ""
    known = [n for n in needed if n]
    enough = [n for n in known if n <= SOON * seeds]
    if not enough or len(needed) == 1:
        return _needed(max(known) if len(known) == len(needed) else None)
    return (f"about {max(enough)} would decide {len(enough)} of {len(needed)}" if len(enough) < len(needed)
            else _needed(max(enough)))


def _still_open(setting: Setting, found: Facts, until: UntilDecided) -> str:
    """Say what is open where seeds were added, and whether more of them would be."""
    said = []
    if found.baseline and until.baseline != BEST and (left := list(found.undecided)):
        said.append((f"against {found.baseline.other}", left, len(found.baseline.pairs)))
    elif found.best and found.best.open and (until.baseline == BEST or not found.baseline):
        best = found.best
        said.append((f"the best: {best.method} leads, not told from", list(best.open),
                     len(best.beaten) + len(best.equal) + len(best.open)))
    told = []
    for asked, left, of in said:
        had = [len(m.seeds) for m in setting.methods if m.label in left]
        over = min(had) >= until.most
        told.append(f"{asked} (after {_counted(min(had))}{', the most that were to be added' if over else ''}): "
                    f"{_list(left, of)}")
    return ". ".join(told)


def _needed(seeds: int | None) -> str:
    return f"about {seeds:,} needed" if seeds else MORE


def _counted(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"


def _basis(found: Facts) -> str:
    """Say which tests decide, and how often they err where what they suppose does not hold."""
    if found.until:
        asked = [f"{c.tests} against {c.other}" for c in (found.baseline, found.joint) if c]
        asked += [f"{found.best.tests} of all pairs"] if found.best else []
        return (f"a sequential t test, {looks(found.until)}, 5 % over each family (tests: {', '.join(asked)}); it "
                f"supposes normal differences: with a method near 100 % up to {100 * (found.false_claims or 0):.0f} % "
                "of such families err")
    families = [(c.tests, f"against {c.other}", "t" if c.by_t else "flips" if any(p.test for p in c.pairs) else None)
                for c in (found.baseline, found.joint) if c]
    if found.best:
        families.append((found.best.tests, "of all pairs", found.best.test))
    said = []
    for test, words in (("flips", "sign flips"), ("t", "paired t, which supposes normal differences")):
        chosen = [f"{tests} {asked}" for tests, asked, by in families if by == test]
        if chosen:
            said.append(f"{words} (tests: {', '.join(chosen)})")
    rate = found.false_claims
    if said and rate is not None:
        said[-1] += f"; with a method near 100 % up to {100 * rate:.0f} % of such families err, not 5 %"
    return "; ".join(said)


def _warnings(setting: Setting) -> Iterable[str]:
    methods = [m for m in setting.methods if m.done]
    if added := {r.trial.seed for r in setting.records if r.seen}:
        yield f"seeds added after a look at a report, which tests do not allow for: {listed(sorted(added))}"
    own = [m for m in methods if not m.reference]
    if not_done := [m.label for m in setting.methods if not m.complete]:
        yield f"not all seeds: {_list(not_done, len(setting.methods))}"
    if setting.baseline is None:
        yield "no naive among the records, so nothing says which methods are worse than plain fine-tuning"
    searched = [m.label for m in own if m.searched]
    rest = [m.label for m in own if not m.searched]
    if own:
        told = _all_but(searched, own) or _list(searched, len(own)) + (
            f"; no search on record: {_list(rest, len(own))}" if rest else "")
        yield (f"searched: {told}" + (", so differences are also those of the search" if rest else "")
               if searched else "no search on record: all")
    if steps := _steps([r for m in methods for r in m.done]):
        yield f"{steps} steps per task"
    if falling := [m.label for m in methods if still_falling(m.done)]:
        yield f"still learning when a task's steps ended: {_among(falling, methods)}"
    if behind := [m.label for m in methods if far_below(m, setting.joint) is not None]:
        yield f"had not learned their tasks: {_among(behind, methods)}"
    for mark, short in SHORT.items():
        if marked := [m.label for m in setting.methods if mark in m.marks]:
            yield f"{mark} {short}: {_among(marked, setting.methods)}"


def _steps(records: Sequence[Record]) -> str:
    """Return the number of steps that most methods take on a task, as a range where tasks differ."""
    counts = Counter((min(steps), max(steps)) for r in records if any(steps := list(r.costs.steps)))
    if not counts:
        return ""
    (low, high), _ = counts.most_common(1)[0]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


SHORT = dict(zip(MARKS, ("inferred the task", "trained among a task's own classes", "trained among all outputs",
                         "kept results of other code or data", "a recipe of its own", "underfit",
                         "not shown to do better than chance"), strict=True))
