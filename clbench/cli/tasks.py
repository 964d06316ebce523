"""Task numbers of the command line, which count from 1. Files, JSON and Python count from 0."""

from __future__ import annotations

from collections.abc import Iterable

import click


class TaskNumber(click.ParamType[int]):
    """A task number as a user types it, from 1. The command gets its index, from 0."""

    name = "task"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the index of task `value`."""
        if isinstance(value, int):  # converted already
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is not the number of a task, such as 2", param, ctx)
        if int(value) == 0:
            self.fail("tasks are counted from 1 now, as tables count them: the first is 1", param, ctx)
        return int(value) - 1


class TaskNumbers(click.ParamType[list[int]]):
    """A list of tasks with commas, as in 1,3."""

    name = "tasks"

    def convert(self, value: str | list[int], param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the indices of the tasks."""
        return [ONE.convert(part.strip(), param, ctx) for part in value.split(",")] if isinstance(value, str) else value


ONE, SEVERAL = TaskNumber(), TaskNumbers()


def numbers(tasks: Iterable[int], between: str = ", ") -> str:
    """Return the numbers of tasks as text, from their indices.

    >>> numbers([0, 2])
    '1, 3'
    """
    return between.join(str(task + 1) for task in tasks)
