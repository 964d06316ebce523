"""The three scenarios of van de Ven & Tolias 2019 ("Three scenarios for continual learning").

A scenario determines the output of each class, the outputs that compete in the loss and in tests, and whether the test
gives the task ID. To add a scenario, add its name to `Scenario` and an entry to `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from clbench.core.errors import DataError

Scenario = Literal["task", "class", "domain"]
Outputs = Literal["seen", "own", "all"]  # outputs that compete in training, if the scenario leaves a choice


@dataclass(frozen=True)
class ScenarioRules:
    """The rules of a scenario; outputs are numbered 0..C-1, tasks 0..T-1."""

    name: Scenario
    task_given: bool  # whether the test gives the task ID of each sample
    shared_outputs: bool  # whether all tasks use the same outputs
    seen_compete: bool  # whether the classes of all tasks so far compete

    @property
    def title(self) -> str:
        """Return the scenario's name in tables: Task-IL, Class-IL or Domain-IL."""
        return f"{self.name.capitalize()}-IL"

    def outputs(self, orders: Sequence[Sequence[int]], benchmark: str) -> list[dict[int, int]]:
        """Return, for each task, the output of each of its classes, in the order of the stream.

        Args:
            orders: the benchmark's own labels of each task, in the order of the stream.
            benchmark: its name, for errors.

        Raises:
            DataError: outputs are shared, and tasks have neither all the same classes nor as many classes of their own.

        >>> scenario_rules("domain").outputs([(0, 1), (2, 3)], "split")
        [{0: 0, 1: 1}, {2: 0, 3: 1}]
        >>> scenario_rules("task").outputs([(0, 1), (0, 1)], "permuted")
        [{0: 0, 1: 1}, {0: 2, 1: 3}]
        """
        classes = list(dict.fromkeys(chain.from_iterable(orders)))  # in order of appearance
        has_same_classes = all(set(order) == set(classes) for order in orders)
        ranks = ({c: c for c in classes} if set(classes) == set(range(len(classes)))
                 else {c: i for i, c in enumerate(classes)})
        if self.shared_outputs:
            return ([{c: ranks[c] for c in order} for order in orders] if has_same_classes
                    else self._shared(orders, len(classes), benchmark))
        if has_same_classes and len(orders) > 1:
            return [{c: ranks[c] + t * len(classes) for c in order} for t, order in enumerate(orders)]
        return [{c: ranks[c] for c in order} for order in orders]

    def _shared(self, orders: Sequence[Sequence[int]], classes: int, benchmark: str) -> list[dict[int, int]]:
        """Return the outputs of tasks that have different classes but share the outputs."""
        where = f"benchmark {benchmark!r}: scenario {self.name!r}"
        if sum(map(len, orders)) != classes:
            raise DataError(f"{where} needs tasks that have all the same classes or none "
                            "in common, and here some classes return; use scenario 'class' or 'task'")
        if len({len(order) for order in orders}) > 1:
            raise DataError(f"{where} needs as many classes in every task, here "
                            f"{', '.join(str(len(order)) for order in orders)}; use scenario 'class' or 'task'")
        return [{c: i for i, c in enumerate(order)} for order in orders]

    def in_loss(self, tasks: Sequence[Sequence[int]], index: int, outputs: Outputs = "seen"
                ) -> list[tuple[range, list[int]]]:
        """Return pairs of tasks and the outputs that enter the loss of their samples from task `index` on.

        Args:
            tasks: the outputs of each task's classes.
            index: the task that begins.
            outputs: the outputs that compete with the labels of the task's samples, if the scenario leaves a choice:
                the classes of all tasks so far, the task's own classes, or all classes of the stream.
        """
        current_task, all_outputs = range(index, index + 1), sorted(set(chain.from_iterable(tasks)))
        if self.shared_outputs:
            return [(current_task, all_outputs)]
        if not self.seen_compete:
            return [(current_task, list(tasks[index]))]
        if outputs == "all":
            return [(range(index + 1), all_outputs)]
        seen_outputs = list(chain.from_iterable(tasks[:index + 1]))
        return ([(range(index), seen_outputs), (current_task, list(tasks[index]))] if outputs == "own"
                else [(range(index + 1), seen_outputs)])

    def at_test(self, tasks: Sequence[Sequence[int]], index: int, learned: int) -> list[int]:
        """Return the outputs that compete for a prediction when task `index` is tested after `learned` tasks.

        If the task has not been learned yet, these include the classes of all tasks up to this one.
        """
        if self.shared_outputs:
            return sorted(set(chain.from_iterable(tasks)))
        if self.seen_compete:
            return list(chain.from_iterable(tasks[:max(learned, index + 1)]))
        return list(tasks[index])


SCENARIOS: dict[Scenario, ScenarioRules] = {rules.name: rules for rules in (
    ScenarioRules("task", task_given=True, shared_outputs=False, seen_compete=False),
    ScenarioRules("class", task_given=False, shared_outputs=False, seen_compete=True),
    ScenarioRules("domain", task_given=False, shared_outputs=True, seen_compete=False),
)}


def names_by_output(tasks: Iterable[tuple[Sequence[int], Sequence[str]]]) -> dict[int, list[str]]:
    """Return the different names of the classes of each output.

    Args:
        tasks: the outputs of each task's classes, and the names of these classes; no names if they are not known.
    """
    names: dict[int, dict[str, None]] = {}
    for outputs, class_names in tasks:
        for output, name in zip(outputs, class_names, strict=False):
            names.setdefault(output, {})[name] = None
    return {output: [*classes] for output, classes in names.items()}


def shared_outputs(tasks: Iterable[tuple[Sequence[int], Sequence[str]]]) -> dict[int, list[str]]:
    """Return the outputs of `names_by_output` that classes with different names share.

    >>> shared_outputs([((0, 1), ("cat", "dog")), ((0, 1), ("hen", "dog"))])
    {0: ['cat', 'hen']}
    """
    return {output: classes for output, classes in names_by_output(tasks).items() if len(classes) > 1}


def scenario_rules(name: Scenario) -> ScenarioRules:
    """Return the rules of a scenario by its name."""
    return SCENARIOS[name]
