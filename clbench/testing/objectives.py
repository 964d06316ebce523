"""The check of objectives other than classification, with a tiny stream and, for text, a tiny language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from clbench.core.entry_points import package_of
from clbench.core.errors import SpecError
from clbench.core.objective import CAUSAL_LM, REGRESSION
from clbench.core.tokens import DTYPE, NO_TOKEN
from clbench.core.user_code import format_error
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask
from clbench.models.scoring import IGNORED
from clbench.testing.tiny import SAMPLES, TASKS, VOCABULARY, Make, NonConforming, tiny_stream
from clbench.training.evaluation import evaluate

LENGTH = 8  # tokens of a text; every second text is shorter by two


def tiny_texts() -> Stream:
    """Return three tasks of 24 texts [8] of random tokens, of which the second half is scored."""
    generator = torch.Generator().manual_seed(0)

    def samples(task: int) -> Samples:
        x = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=generator, dtype=DTYPE)
        x[::2, -2:] = NO_TOKEN
        is_scored = (x != NO_TOKEN) & (torch.arange(LENGTH) >= LENGTH // 2)
        return Samples(x, x.masked_fill(~is_scored, IGNORED), torch.full((SAMPLES,), task))

    tasks = tuple(StreamTask((), samples(task), samples(task)) for task in range(TASKS))
    return Stream(tasks, 0, (LENGTH,), Prepare(), "tiny texts", (), objective=CAUSAL_LM.name)


def tiny_numbers() -> Stream:
    """Return three tasks of 24 images [1, 8, 8] whose numeric target is -1 or 1."""
    stream = tiny_stream("domain")

    def samples(part: Samples) -> Samples:
        return Samples(part.x, part.y * 2.0 - 1.0, part.tasks)

    tasks = tuple(StreamTask((index,), samples(task.train), samples(task.test))
                  for index, task in enumerate(stream.tasks))
    return replace(stream, tasks=tasks, classes=TASKS, fingerprint="tiny numbers", objective=REGRESSION.name)


STREAMS: dict[str, Callable[[], Stream]] = {CAUSAL_LM.name: tiny_texts, REGRESSION.name: tiny_numbers}


def check_objectives(make: Make) -> None:
    """Check that the method trains and predicts on streams of text or numbers, if it declares such objectives.

    There is nothing to check if the method refuses the objective with these options (`SpecError`).
    """
    for name in make("task").objectives:
        if name not in STREAMS:
            continue
        try:
            b = make("task", stream=STREAMS[name]())
        except SpecError:
            continue
        for index in range(TASKS):
            location = f"objective {name}, task {index + 1}"
            try:
                b.learn(index)
                scores = evaluate(b.strategy, b.stream, "task", index + 1).scores
            except Exception as error:  # the code of a method can raise any error
                raise NonConforming(f"{location}: {format_error(error, package_of(type(b.strategy)))}; if the method "
                                    f"does not support {name}, take it out of objectives") from error
            if not torch.tensor([*scores.values()]).isfinite().all():
                raise NonConforming(f"{location}: scores are not finite: {scores}")
