"""Counts of `clbench params` as text, markdown or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from clbench.core.options import format_value
from clbench.report.formats.markdown import escape
from clbench.report.formatting import NONE, by_task
from clbench.report.model import FigureData, FigurePoint

if TYPE_CHECKING:
    from clbench.accounting.count import Count

FIGURES = ("method", "parameters", "trainable", "bytes per task", "ratio to full")
MEANING = ("trainable: parameters that one task (of several the last) trains; bytes per task: what those take, 1 KB = "
           "1000 bytes; ratio to full: trainable parameters against full fine-tuning's.")
MEANING_OF_MORE = ("parameters, bytes kept: all that the method holds after the last task, its memory of samples "
                   "included; FLOPs: of predicting one sample then, a multiply-add as two.")
WIDTH = 100  # of paragraphs on the terminal
PREFIXES = ("", "K", "M", "G", "T", "P")
SMALLEST = 10  # factors from here on are written as whole numbers


def show(setting: Mapping[str, Any], counts: Sequence[Count], form: str) -> str:
    """Return counts, that of full fine-tuning first, as `text`, `md` or `json`.

    Args:
        setting: what was counted, for the heading.
        counts: of one layer, or of a network (with FLOPs), for which there is more to show.
        form: text | md | json.
    """
    if form == "json":
        return json.dumps({**setting, "methods": [as_json(count, counts[0]) for count in counts]}, indent=2)
    blocks = [_text(", ".join(f"{key} {_plain(value)}" for key, value in setting.items()), form)]
    rows = [[c.method, _last(f"{n:,}" for n in c.parameters), _last(f"{n:,}" for n in c.trainable),
             _last(map(size, c.trainable_bytes)), ratio(c, counts[0])] for c in counts]
    network = "model" in setting
    if network:
        rows = [[*row, _last(map(size, c.bytes)), NONE if c.flops is None else scaled(c.flops)]
                for row, c in zip(rows, counts, strict=True)]
    blocks.append(_table([*FIGURES, "bytes kept", "FLOPs"] if network else FIGURES, rows, form))
    blocks.append(_text(f"{MEANING} {MEANING_OF_MORE}" if network else MEANING, form))
    if network:
        blocks += ["Parameters kept after each task:", _growth([[f"{n:,}" for n in c.parameters] for c in counts],
                                                               counts, form)]
        blocks += ["Bytes kept after each task:", _growth([list(map(size, c.bytes)) for c in counts], counts, form)]
    notes = [f"{c.method}: trains {by_task(c.trainable)}" for c in counts if len(set(c.trainable)) > 1]
    for c in counts:
        notes += [f"{c.method}: {remark}" for remark in c.remarks]
        if c.note:
            notes.append(f"{c.method}: {c.note}")
    return "\n\n".join([*blocks, *(["\n".join(f"- {_text(note, form)}" for note in notes)] if notes else [])])


def as_json(count: Count, full: Count) -> dict[str, Any]:
    """Return a count as plain values."""
    return {"method": count.method, "trainable": count.trainable, "trainable_bytes": count.trainable_bytes,
            "ratio_to_full": factor(count, full), "parameters": count.parameters, "bytes": count.bytes,
            "kept": [asdict(kept) for kept in count.kept], "flops": count.flops, "note": count.note,
            "remarks": count.remarks}


def factor(count: Count, full: Count) -> float | None:
    """Return how many times fewer parameters the last task trains than full fine-tuning does; None if it trains none.

    Below 1 it trains more.
    """
    if not count.trainable or not full.trainable or not count.trainable[-1]:
        return None
    return full.trainable[-1] / count.trainable[-1]


def ratio(count: Count, full: Count) -> str:
    """Return the factor as `31x fewer`, `2.5x more` or `1x`."""
    found = factor(count, full)
    if found is None:
        return NONE
    if found == 1:
        return "1x"
    times = max(found, 1 / found)
    return (f"{times:,.0f}x" if times >= SMALLEST else f"{times:.2g}x") + (" fewer" if found > 1 else " more")


def size(count: float) -> str:
    """Return bytes with three digits at most.

    >>> size(32_000), size(4_000_000), size(44_695_848), size(0)
    ('32 KB', '4 MB', '44.7 MB', '0 B')
    """
    return scaled(count) + "B"


def scaled(value: float) -> str:
    """Return a number with three digits and a decimal prefix of its unit, which is to follow."""
    power = 0
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {PREFIXES[power]}"


def growth_of_bytes(counts: Sequence[Count], subject: str) -> FigureData:
    """Return the figure of the bytes kept after each of several tasks, full fine-tuning as the reference.

    Args:
        counts: that of full fine-tuning first.
        subject: a line above the figure.
    """
    points = tuple(FigurePoint(c.method, c.method.partition(":")[0], c is counts[0], False, None, None, None,
                               tuple(map(float, c.bytes))) for c in counts if c.bytes)
    return FigureData("growth", "growth", "Bytes kept after each task", subject, "", "", points, axis="bytes kept")


def _growth(columns: Sequence[Sequence[str]], counts: Sequence[Count], form: str) -> str:
    """Return a table with a row for each task and a column for each method."""
    tasks = max(map(len, columns))
    rows = [[str(t + 1), *(column[t] if t < len(column) else NONE for column in columns)] for t in range(tasks)]
    return _table(["tasks", *(c.method for c in counts)], rows, form)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    """Return a table for the terminal or in markdown; the first column is text, the others numbers."""
    if form == "md":
        headers, rows = list(map(escape, headers)), [list(map(escape, row)) for row in rows]
    return tabulate(rows, headers, tablefmt="pipe" if form == "md" else "simple", disable_numparse=True,
                    colalign=("left", *["right"] * (len(headers) - 1)))


def _text(text: str, form: str) -> str:
    """Return a paragraph: escaped in markdown, wrapped on the terminal."""
    return escape(text) if form == "md" else textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _last(texts: Iterable[str]) -> str:
    return (list(texts) or [NONE])[-1]


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else format_value(value)
