"""The inputs that batches are drawn from, with work that every pass would repeat done once per task.

Samples are turned into inputs of the model once, where the strategy does not ask for raw ones. If the network's first
blocks are frozen, their outputs are computed once and trained on. No strategy knows of it: it is done only where the
first batch of every phase shows that the loss is the same from the blocks' outputs as from the inputs, so a strategy
that uses its inputs in another way is left alone. The outputs of other frozen modules are looked up
(`clbench.training.lookup`), but not in a stack. Neither is done for a single pass, which repeats nothing.
`CLBENCH_CACHE_FROZEN=0` turns both off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from clbench.core import tokens
from clbench.data.prepare import IMAGE_DIMS
from clbench.data.samples import Samples
from clbench.models.network import Network
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training.flops import FlopCount
from clbench.training.lookup import cache_frozen_outputs, enabled
from clbench.training.stacking import Loss

BYTES = 2**30  # for what is kept, all members together, unless the execution settings say otherwise
CHUNK, CHUNK_BYTES = 1024, 2**24  # samples that go through frozen blocks at once, and bytes of their inputs
PREPARED_AT_ONCE = 256  # samples that are turned into inputs at once: on a CPU they stay in its caches
LARGE_BATCH = 2**18  # bytes of inputs
PLAIN = nullcontext()


class TrainingInputs(NamedTuple):
    """Samples of each member, the block they go to, and whether they are inputs of the network (or raw)."""

    samples: list[Samples]
    start: int
    prepared: bool
    flops: int = 0  # that the samples of one member cost
    repeats: bool = False  # whether they are passed over more than once
    budget: int = 0  # bytes that they and what is looked up for them may take


def frozen_blocks(strategy: Strategy) -> int:
    """Return how many of the model's first blocks neither learn nor change by being run."""
    if not isinstance(strategy.model, Network):
        return 0
    count = 0
    for block in strategy.model.blocks:
        if any(p.requires_grad for p in block.parameters()) or any(m.training for m in block.modules()):
            break
        count += 1
    return count


@contextmanager
def starting_at(strategies: Sequence[Strategy], block: int) -> Iterator[None]:
    """Make the models start at block `block`, whose inputs they are given."""
    try:
        for strategy in strategies:
            strategy.model.start = block
        yield
    finally:
        for strategy in strategies:
            strategy.model.start = 0


def outputs(strategy: Strategy, samples: Samples, blocks: int) -> Samples:
    """Return the samples with x replaced by the outputs of the first blocks."""
    kept: Tensor | None = None
    done = 0
    with torch.no_grad():
        each = 4 * math.prod(strategy.world.input_shape) * (tokens.WIDTH if strategy.world.is_text else 1)
        for raw in samples.chunks(min(CHUNK if blocks else PREPARED_AT_ONCE, max(1, CHUNK_BYTES // each))):
            x = strategy.world.prepare(raw.x)
            for block in list(strategy.model.blocks)[:blocks]:
                x = block(x)
            if kept is None:  # written to, not joined at the end: that would take twice the memory, all of it new
                channels_last = x.dim() == IMAGE_DIMS and not x.is_contiguous() and x.is_contiguous(
                    memory_format=torch.channels_last)
                kept = torch.empty((len(samples), *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=
                                   torch.channels_last if channels_last else torch.contiguous_format)
            kept[done:done + len(x)] = x
            done += len(x)
    assert kept is not None
    return Samples(kept, samples.y, samples.tasks)


def precompute_inputs(strategies: Sequence[Strategy], samples: Sequence[Samples], task: int, seen: int,
                      lookups: bool = True, batch: int = 0, forward: AbstractContextManager[object] = PLAIN,
                      budget: int | None = None) -> TrainingInputs:
    """Return the inputs of a phase, with work that every pass would repeat already done.

    Args:
        strategies: the members, in the state in which the phase trains them.
        samples: of each member, raw.
        task: the task being trained.
        seen: samples that the phase will draw; fewer than there are would make it a loss.
        lookups: whether batches may be rows of tables, which a compiler cannot see through.
        batch: new samples of a step, where a single pass may be prepared batch by batch.
        forward: the arithmetic of the loss (`numerics.forward`).
        budget: bytes for what is kept, all members together; by default `BYTES`.
    """
    budget = BYTES if budget is None else budget
    raw = TrainingInputs(list(samples), start=0, prepared=False)
    looks_at_raw = overrides(strategies[0], "augment_batch")
    if looks_at_raw or any(part.is_stochastic for part in samples) or seen < len(samples[0]):
        return raw
    repeats = seen >= 2 * len(samples[0])
    blocks, flops = min(map(frozen_blocks, strategies)) if repeats and enabled() else 0, 0
    if (blocks and fits_budget(strategies, samples, blocks, budget)
            and is_equivalent(strategies[0], samples[0], task, blocks)):
        with forward:
            with FlopCount() as count:
                kept = [outputs(strategies[0], samples[0], blocks)]
            flops = count.total
            kept += [outputs(s, part, blocks) for s, part in zip(strategies[1:], samples[1:], strict=True)]
    elif prepared_in_batches(strategies, samples, seen, batch):
        return raw
    elif fits_budget(strategies, samples, 0, budget):
        blocks = 0
        shared = {id(part): part for part in samples}  # members may have the same
        ready = {key: outputs(strategies[0], part, 0) for key, part in shared.items()}
        kept = [ready[id(part)] for part in samples]
    else:
        return raw
    if lookups and repeats and len(strategies) == 1:
        kept = [with_lookups(strategies[0], kept[0], budget)]
    return TrainingInputs(kept, blocks, prepared=True, flops=flops, repeats=repeats, budget=budget)


def with_lookups(strategy: Strategy, samples: Samples, budget: int) -> Samples:
    """Return prepared samples for which the outputs of frozen modules are looked up, if that is not turned off.

    Args:
        strategy: whose modules they are.
        samples: in the form in which they are trained on.
        budget: bytes that they and the tables may take.
    """
    return cache_frozen_outputs(samples, strategy.frozen_modules(), budget - samples.x.nbytes) if enabled() else samples


def prepared_in_batches(strategies: Sequence[Strategy], samples: Sequence[Samples], seen: int, batch: int) -> bool:
    """Return whether to prepare each batch when it comes: on a CPU, one trial, a single pass, large batches.

    The values are the same. All inputs at once cost memory, and new memory takes longer than the arithmetic: 10 to 46
    ms for 12,665 images of MNIST, by the allocator, where batches of 128 take 7 ms. For small batches it is a loss.
    """
    some = samples[0]
    if len(strategies) > 1 or seen >= 2 * len(some) or some.y.device.type != "cpu":
        return False
    return (4 * batch * math.prod(strategies[0].world.input_shape) >= LARGE_BATCH
            and not any(True for _ in strategies[0].frozen_modules()))


def fits_budget(strategies: Sequence[Strategy], samples: Sequence[Samples], blocks: int, budget: int) -> bool:
    """Return whether the outputs of the first `blocks` blocks for all samples take no more bytes than `budget`."""
    first = outputs(strategies[0], samples[0].take(torch.arange(1, device=samples[0].index_device)), blocks)
    parts = samples if blocks else {id(part): part for part in samples}.values()
    return first.x.nbytes * sum(map(len, parts)) <= budget


def is_equivalent(strategy: Strategy, samples: Samples, task: int, blocks: int) -> bool:
    """Return whether the loss of a batch is the same from the blocks' outputs as from its inputs.

    What is trained is moved a little first: a term that starts at zero would say nothing. Losses without values are
    taken to be the same if both can be computed.
    """
    some = samples.take(torch.arange(min(16, len(samples)), device=samples.index_device))
    batch = Batch(some.x, some.y, some.tasks, task)
    losses: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    moved = {f"strategy.{n}": p if p.is_meta else p + 0.01 * torch.randn(p.shape, generator=generator).to(p)
             for n, p in strategy.named_parameters() if p.requires_grad}
    buffers = dict(strategy.named_buffers())
    with torch.no_grad():
        for x, start in ((strategy.world.prepare(some.x), 0), (outputs(strategy, some, blocks).x, blocks)):
            with torch.random.fork_rng(), starting_at([strategy], start):
                try:
                    state = moved | {f"strategy.{n}": b.clone() for n, b in buffers.items()}  # running statistics
                    losses.append(functional_call(Loss(strategy), state, (batch, x, batch.y, batch.tasks)))
                except (RuntimeError, ValueError, IndexError, TypeError):
                    return False  # it does something else with its inputs than to run the model on them
    return losses[0].is_meta or bool(torch.allclose(losses[0], losses[1], rtol=1e-5, atol=1e-6))
