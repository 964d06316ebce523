"""Answers of learned parts on the test samples, kept from one row of R to the next where nothing behind them changed.

A strategy with a part per task answers old tasks with parts that no later task changes (adapters, columns, copies), so
most of a row of R would be computed as before. Nobody has to say which parts change. Before a kept answer is used, the
part runs on a few of its samples, and the tensors that it reads are noted: its answers are kept if these are the same
tensors with the same bytes (by a hash) as when they were computed, and the few answers are equal bit for bit. Which
tensors a part reads may depend on the task, not on the values of the inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clbench.data.stream import Tests
from clbench.strategy.base import Prediction, Strategy
from clbench.strategy.per_task import PerTaskStrategy
from clbench.training.hashes import hashed
from clbench.training.kept_blocks import KeptBlocks

BYTES = 2**28  # of answers of one trial
PROBE = 16  # samples on which a part is watched; with fewer than 4 times as many nothing is kept
GIVES_UP = 1  # a part that has changed more often is not watched any more

Compute = Callable[[Tensor], Tensor]


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that notes the storages of all tensors that an operation inside gets."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to be left out by torch's compiler, it would import the compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what an operation gets, and run it."""
        kwargs = kwargs or {}
        self.storages.update(t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Seen:
    """What a part did with the few samples: its answers, and a hash of each tensor that it read, by name."""

    answers: Tensor
    read: dict[str, bytes]

    @cached_property
    def columns(self) -> Tensor:
        """The indices [K] of the answers that are not -inf everywhere."""
        return (self.answers != -torch.inf).any(0).nonzero().flatten()

    def same(self, other: Seen) -> bool:
        """Return whether the part is the one that was seen then."""
        return self.read == other.read and torch.equal(self.answers, other.answers)


@dataclass
class Part:
    """What answers for one task: its key, its answers [N, C] as far as they are known, and what it does when watched.

    Only the columns that are not -inf everywhere are kept.
    """

    key: Hashable
    compute: Compute
    seen: Seen | None = None  # None: not to be kept
    kept: Tensor | None = None  # [N, K]
    new: list[Tensor] = field(default_factory=list)  # [n, K] each
    left_out: list[Tensor] = field(default_factory=list)  # for each of them, whether other columns had anything

    def answers(self, x: Tensor, begin: int) -> Tensor:
        """Return the answers [n, C] to inputs x [n, ...], which are those from `begin` on."""
        if self.kept is None:
            return self.add(self.compute(x))
        assert self.seen is not None
        answers = self.kept.new_full((len(x), self.seen.answers.shape[1]), -torch.inf)
        answers[:, self.seen.columns] = self.kept[begin:begin + len(x)]
        return answers

    def add(self, answers: Tensor) -> Tensor:
        """Take new answers [n, C] and return them."""
        if self.seen is not None:
            self.new.append(answers[:, self.seen.columns])
            rest = answers.index_fill(1, self.seen.columns, -torch.inf)
            self.left_out.append((rest != -torch.inf).any())
        return answers


@dataclass
class KeptAnswers:
    """Answers of a trial's parts, by key; those of the evaluations of one strategy on one stream."""

    known: dict[Hashable, tuple[Seen, Tensor]] = field(default_factory=dict)
    changes: Counter[Hashable] = field(default_factory=Counter)  # how often a part was not what it had been
    hashes: dict[str, bytes] = field(default_factory=dict)  # of the strategy's tensors, in this evaluation
    blocks: KeptBlocks = field(default_factory=KeptBlocks)  # for strategies without parts

    def begin(self, strategy: Strategy) -> None:
        """Begin an evaluation of a strategy in eval mode: what was hashed before may have changed."""
        self.hashes.clear()
        self.blocks.begin(strategy)

    def find(self, strategy: Strategy, key: Hashable, compute: Compute, few: Tensor, samples: int) -> Part:
        """Return a part with its kept answers on so many samples, if it does with a few inputs what it did before."""
        part = Part(key, compute)
        if self.changes[key] > GIVES_UP:
            return part
        part.seen = self._watch(strategy, few, compute)
        if key in self.known:
            seen, kept = self.known.pop(key)
            if seen.same(part.seen):
                self.known[key] = seen, kept
                part.kept = kept
                return part
            self.changes[key] += 1
        room = BYTES - sum(kept.nbytes for _, kept in self.known.values())
        if samples * len(part.seen.columns) * part.seen.answers.element_size() > room:
            part.seen = None
        return part

    def keep(self, part: Part) -> None:
        """Keep what a part has answered."""
        if part.seen is not None and part.kept is None and not bool(torch.stack(part.left_out).any()):
            self.known[part.key] = part.seen, torch.cat(part.new)

    def _watch(self, strategy: Strategy, few: Tensor, compute: Compute) -> Seen:
        """Run a part on a few inputs and see what it reads."""
        torch.clear_autocast_cache()  # a weight that was cast before would not be read again
        with torch._C.DisableTorchFunction(), Reads() as reads:  # nor one that `numerics.Bfloat16` has
            answers = compute(few)
        tensors: Mapping[str, Tensor] = {**dict(strategy.named_parameters()), **dict(strategy.named_buffers())}
        read = {n: t for n, t in tensors.items() if t.untyped_storage()._cdata in reads.storages}
        self.hashes |= hashed({name: t for name, t in read.items() if name not in self.hashes})
        return Seen(answers, {name: self.hashes[name] for name in read})


def predictions(strategy: Strategy, tests: Tests, size: int, given: int | None,
                kept: KeptAnswers | None) -> Iterator[tuple[Prediction, Tensor, Tensor]]:
    """Yield predictions, labels and task indices of a task's test samples, or of all, in batches.

    Args:
        strategy: in eval mode; without gradients.
        tests: the samples.
        size: of a batch.
        given: the task, None if it is not given.
        kept: answers of earlier evaluations, None to compute all of them.
    """
    samples = len(tests.y) if given is None else tests.sizes[given]
    if kept is None or samples < 4 * PROBE:
        for x, y, tasks in tests.batches(size, given):
            yield strategy.predict(x, given), y, tasks
        return
    few = next(tests.batches(PROBE, given))[0]
    known = isinstance(strategy, PerTaskStrategy) and type(strategy).predict is PerTaskStrategy.predict
    if not known or (given is None and not strategy.learned):
        blocks = kept.blocks if kept.blocks.serve(strategy, few, samples, given) else None
        for number, (x, y, tasks) in enumerate(tests.batches(size, given)):
            yield blocks.predict(strategy, x, given, number) if blocks else strategy.predict(x, given), y, tasks
        return
    assert isinstance(strategy, PerTaskStrategy)
    computes: dict[Hashable, Compute] = (
        {task: partial(strategy.forward_task, task=task) for task in range(strategy.learned)} if given is None
        else {(given, given < len(strategy.heads)): lambda x: strategy.predict(x, given).logits})
    if given is None and strategy.options.from_features:
        computes["features"] = strategy.inference_features
    parts = [kept.find(strategy, key, compute, few, samples) for key, compute in computes.items()]
    begin = 0
    for x, y, tasks in tests.batches(size, given):
        if given is not None:
            yield Prediction(parts[0].answers(x, begin)), y, tasks
        else:
            learned, rest = parts[:strategy.learned], parts[strategy.learned:]
            if any(part.kept is not None for part in learned):
                logits = torch.stack([part.answers(x, begin) for part in learned])
            else:  # all at once, which may share what they have in common
                logits = strategy.learned_logits(x)
                for part, own in zip(learned, logits, strict=True):
                    part.add(own)
            yield strategy.chosen(logits, rest[0].answers(x, begin) if rest else None), y, tasks
        begin += len(x)
    for part in parts:
        kept.keep(part)
