"""The choice under constraints as a page's script gets it: everything decided and written, to be looked up only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clbench.report.analysis.choosing import KINDS, Kind
from clbench.report.decided import Beside, Candidate
from clbench.report.formatting import interval, number
from clbench.report.model import Section

SLIDERS = tuple(kind for kind in KINDS if kind.name != "samples")
SHOWN, UNTESTED = -1, -2  # in place of a number of seeds: the difference is significant, or it is not tested


def packed(sections: Sequence[tuple[str, Section]]) -> str:
    """Return the choice as JSON for a script, empty where no section has one.

    `kinds`: name, heading and words of each, then all amounts of it, ascending, as they are typed and as they are read.
    `settings`: id, title, whether the task is given, seeds, the methods (label, ACC, whether samples are kept, and of
    each kind the position of its amount; -1: not counted), for each method three numbers for each that follows
    (`_beside`), and who is no choice.

    Args:
        sections: id and section.
    """
    found = [(id_, section, section.choosable) for id_, section in sections if section.choosable]
    if not found:
        return ""
    amounts = {kind.name: sorted({value for *_, one in found for candidate in one.candidates
                                  if (value := candidate.counted[kind.name]) is not None}) for kind in SLIDERS}
    kinds = [[kind.name, kind.measure.column.name, kind.words, list(map(typed, amounts[kind.name])),
              [number(value, kind.measure.column.unit) for value in amounts[kind.name]]] for kind in SLIDERS]
    places = {name: {value: i for i, value in enumerate(values)} for name, values in amounts.items()}

    def place(kind: Kind, candidate: Candidate) -> int:
        value = candidate.counted[kind.name]
        return -1 if value is None else places[kind.name][value]

    settings: list[list[Any]] = []
    for id_, section, one in found:
        methods = [[f"{c.label} {c.caution}".strip(), interval(c.accuracy, c.half_width, "percent"), _samples(c),
                    *(place(kind, c) for kind in SLIDERS)] for c in one.candidates]
        settings.append([id_, section.title, int(one.task_given), len(section.seeds), methods,
                         [[part for pair in row for part in _beside(pair)] for row in one.beside], one.incomplete])
    return json.dumps({"kinds": kinds, "settings": settings}, ensure_ascii=False, separators=(",", ":"))


def typed(value: float) -> str:
    """Return an amount as `clbench choose` takes it, to the last digit."""
    return str(int(value)) if value == int(value) else repr(value)


def _samples(candidate: Candidate) -> int:
    """Return whether samples are kept: 0, 1, or -1 where that was not counted."""
    value = candidate.counted["samples"]
    return -1 if value is None else int(value > 0)


def _beside(pair: Beside) -> list[int | None]:
    """Return the difference and its half width (None: there is none) in hundredths of a point, and what tells it.

    That is `SHOWN` or `UNTESTED`, or about how many seeds would show it; 0: that is not known.
    """
    half = pair.half_width
    return [_hundredths(pair.difference), None if half is None else _hundredths(half),
            SHOWN if pair.shown else UNTESTED if pair.untested else pair.needed or 0]


def _hundredths(value: float) -> int:
    """Return points as they are written, without the dot."""
    return int(number(value, "points").replace(",", "").replace(".", ""))
