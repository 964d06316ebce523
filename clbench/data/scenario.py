"""What a scenario makes of a benchmark's own labels: which output of the model each class of each task is.

Follows van de Ven & Tolias 2019 ("Three scenarios for continual learning"): in `task` and `class` every class has an
output of its own, in `domain` the tasks share the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from clbench.errors import DataError
from clbench.strategy import Scenario


def outputs(orders: Sequence[Sequence[int]], scenario: Scenario, name: str) -> list[dict[int, int]]:
    """Return, for each task, the output (0..C-1) of each of its classes, in the order of the stream.

    Args:
        orders: the benchmark's own labels of each task, in the order of the stream.
        scenario: what the test gives away.
        name: of the benchmark, for errors.

    Raises:
        DataError: scenario `domain` where neither all tasks have the same classes nor all have as many of their own.

    >>> outputs([(0, 1), (2, 3)], "domain", "split")
    [{0: 0, 1: 1}, {2: 0, 3: 1}]
    >>> outputs([(0, 1), (0, 1)], "task", "permuted")
    [{0: 0, 1: 1}, {0: 2, 1: 3}]
    """
    every = list(dict.fromkeys(chain.from_iterable(orders)))  # in order of appearance
    shared = all(set(order) == set(every) for order in orders)
    ranks = {c: c for c in every} if set(every) == set(range(len(every))) else {c: i for i, c in enumerate(every)}
    if scenario == "domain":
        if shared:
            return [{c: ranks[c] for c in order} for order in orders]
        if sum(map(len, orders)) != len(every):
            raise DataError(f"benchmark {name!r}: scenario 'domain' needs tasks that have all the same classes or none "
                            "in common, and here some classes return; use scenario 'class' or 'task'")
        if len({len(order) for order in orders}) > 1:
            raise DataError(f"benchmark {name!r}: scenario 'domain' needs as many classes in every task, here "
                            f"{', '.join(str(len(order)) for order in orders)}; use scenario 'class' or 'task'")
        return [{c: i for i, c in enumerate(order)} for order in orders]
    if shared and len(orders) > 1:
        return [{c: ranks[c] + t * len(every) for c in order} for t, order in enumerate(orders)]
    return [{c: ranks[c] for c in order} for order in orders]
