"""Numbers to predict: samples with a numeric target, divided into the tasks that the data name.

Targets are standardized by the mean and the population standard deviation of the first task's training targets, so that
published learning rates fit any unit. Metrics and predictions are in the target's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clbench.core.objective import REGRESSION, significant
from clbench.data.own.benchmark import describe_copies
from clbench.data.own.dividing import Division, Rows
from clbench.data.raw import RawStream, Split


def target_stream(division: Division, x: Sequence[Tensor], targets: Sequence[Tensor], name: str, *,
                  mean: Sequence[float] = (), std: Sequence[float] = (), notes: Sequence[str] = ()) -> RawStream:
    """Return the stream of samples with targets.

    Args:
        division: of `divide_targets`.
        x: inputs [N, ...] of the samples and of the test part, which are the same if there is no test part.
        targets: float64 [N] likewise.
        name: of the target.
        mean: that inputs are standardized by; empty if they are not.
        std: likewise.
        notes: how inputs were read.
    """
    first = targets[0][torch.from_numpy(division.train[0])]
    center, spread = float(first.mean()), float(first.std(correction=0)) or 1.0

    def splits(part: int, tasks: Sequence[Rows]) -> tuple[Split, ...]:
        scaled = ((targets[part] - center) / spread).float()
        rows = [torch.from_numpy(np.ascontiguousarray(of_task)) for of_task in tasks]
        return tuple(Split(x[part][chosen], scaled[chosen]) for chosen in rows)

    train, test = splits(0, division.train), tuple(
        replace(split, rows=torch.from_numpy(rows)) for split, rows in zip(splits(-1, division.test), division.test,
                                                                           strict=True))
    twice = describe_copies(*([split.x for split in part if isinstance(split.x, Tensor)] for part in (train, test)))
    target = (f"the target is {name}; training standardizes it by mean {significant(center)} and deviation "
              f"{significant(spread)} of the first task's {len(first)} training samples, and metrics are in its unit")
    return RawStream(train, test, division.orders, tuple(mean), tuple(std),
                     (*notes, target, *division.notes, *twice), objective=REGRESSION.name, task_names=division.tasks,
                     target=(center, spread))
