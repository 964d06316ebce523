"""The table of what language models answer to a test prompt of each task: just after it was learned, and at the end."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.report.analysis.method_records import MethodRecords
from clbench.report.formatting import clean
from clbench.report.model import Cell, Column, Row, Table

TITLE = "Answers to a test prompt of each task"
COLUMNS = ("task", "prompt", "response in the data", "answer after the task", "answer after the last task")
MOST = 120  # characters of a cell


def answers(methods: Sequence[MethodRecords]) -> tuple[Table, ...]:
    """Return the table of each method's first seed; nothing if no record has answers."""
    rows = []
    for method in methods:
        record = next((record for record in method.done if record.answers), None)
        if record is None or record.stream is None:
            continue
        names = record.stream.task_names or [str(i + 1) for i in range(len(record.stream.classes))]
        for task, name in enumerate(names):
            answer = next((answer for answer in record.answers if answer.task == task), None)
            if answer is not None:
                texts = (name, answer.prompt, answer.response, answer.learned, answer.end)
                rows.append(Row(method.label, tuple(Cell(_shown(text)) for text in texts), reference=method.reference))
    return (Table(TITLE, tuple(Column(title, "text") for title in COLUMNS), tuple(rows)),) if rows else ()


def _shown(text: str) -> str:
    """Return a text on one line, its middle left out if it is long."""
    line = clean(" ".join(text.split()))
    return line if len(line) <= MOST else f"{line[:MOST // 2]} ... {line[-MOST // 2:]}"
