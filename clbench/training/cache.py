"""Computing once what a method says does not change: inputs, frozen blocks, frozen outputs and final predictions.

The pictures, for training a progressive network's second column on top of its frozen first one, and for evaluation:

    samples ---> frozen column 1 ---> h [N, 400]              computed once per phase (`Strategy.frozen_outputs`)
                                        |
    batch = samples[index]              | batch.frozen[...]   its rows, in each step
      |                                 v
      +------> column 2, which learns: relu(W x + U h) ---> loss

    test samples ---> task 1's part ---> predictions          computed once per trial (`Strategy.parts_final`)

A method declares what may be cached (docs/writing-a-strategy.md). What it does not declare is computed every time.
Declarations are tested at run time: in each phase and each evaluation one batch, chosen by the seed, is computed again
as it was, and must be the same bit for bit. `--verify-caches` does this with every batch. A method whose declaration is
wrong ends with a `PluginError`. The environment variable `CLBENCH_CACHE_FROZEN=0` turns the caches off.

Prepared inputs need no declaration. A phase that passes over its samples once caches nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from clbench.core import seeds, tokens
from clbench.core.errors import PluginError
from clbench.data.prepare import IMAGE_DIMS
from clbench.data.samples import Samples, pick
from clbench.models.network import Network
from clbench.strategy.base import Batch, Strategy, declares, overrides
from clbench.training.steps import Loss, arguments_of

SWITCH = "CLBENCH_CACHE_FROZEN"  # environment variable; 0 turns the caches off
BYTES = 2**30  # for what a phase stores, all members together, unless the execution settings say otherwise
CHUNK, CHUNK_BYTES = 1024, 2**24  # samples that frozen blocks compute at once, and bytes of their inputs
CHUNKS = 8  # into which the samples are divided at least, so that computing one of them again costs little
SMALLEST_CHUNK = 16
PREPARED_AT_ONCE = 256  # samples that are turned into inputs at once: on a CPU they stay in its caches
LARGE_BATCH = 2**18  # bytes of inputs
INPUTS = "inputs"
Forward = AbstractContextManager[object]


class CachedSamples(Samples):
    """Prepared samples, with what `Strategy.frozen_outputs` returned for them, [N, ...] by name."""

    def __init__(self, x: Tensor, y: Tensor, tasks: Tensor, frozen: Mapping[str, Tensor]) -> None:
        super().__init__(x, y, tasks)
        object.__setattr__(self, "outputs", frozen)

    outputs: Mapping[str, Tensor]

    @property
    def frozen(self) -> Mapping[str, Tensor]:
        """Return the outputs."""
        return self.outputs

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M])."""
        return CachedSamples(pick(self.x, index), pick(self.y, index), pick(self.tasks, index),
                             {name: pick(rows, index) for name, rows in self.outputs.items()})


@dataclass
class PhaseInputs:
    """What the batches of a phase are drawn from.

    Args:
        samples: of each member.
        raw: the same samples as the stream stores them.
        start: the block of the network that they go to.
        prepared: whether they are inputs of the network; else they are raw.
        forward: the arithmetic in which they were computed.
    """

    samples: list[Samples]
    raw: list[Samples]
    start: int = 0
    prepared: bool = False
    forward: Forward = field(default_factory=nullcontext)

    @property
    def cached(self) -> bool:
        """Tell whether they have outputs of anything frozen."""
        return self.start > 0 or any(isinstance(part, CachedSamples) for part in self.samples)

    def verify(self, strategies: Sequence[Strategy], seed: int, everything: bool = False) -> None:
        """Compute a batch of the cached samples again, at the end of the phase, and compare; or every batch.

        Raises:
            PluginError: something that the method declares as frozen has changed.
        """
        if not self.cached or self.samples[0].x.is_meta:
            return
        for strategy, raw, cached_samples in zip(strategies, self.raw, self.samples, strict=True):
            size = chunk_size(strategy, len(raw), frozen=True)
            count = math.ceil(len(raw) / size)
            stored_outputs = {INPUTS: cached_samples.x, **(cached_samples.frozen or {})}
            with torch.no_grad(), self.forward:
                for number in range(count) if everything else (seeds.derive(seed, "cache") % count,):
                    part = next(raw.chunks(size, number))
                    rows = slice(number * size, number * size + len(part))
                    for name, again in compute(strategy, part, self.start).items():
                        before = stored_outputs.get(name)
                        if before is not None and not identical(before[rows], again):
                            what = "the network's first blocks" if name == INPUTS else f"frozen_outputs[{name!r}]"
                            raise PluginError(
                                f"{type(strategy).__name__}: {what} changed while the phase was trained, and clbench "
                                "had computed them once; frozen_outputs may return only what the phase does not "
                                "change, and parameters that change must require a gradient")
            if not everything:
                return


def enabled() -> bool:
    """Tell whether anything frozen may be cached: unless the environment variable `SWITCH` is 0."""
    return os.environ.get(SWITCH) != "0"


def frozen_blocks(strategy: Strategy) -> int:
    """Return how many of the model's first blocks neither learn nor change when they run."""
    if not isinstance(strategy.model, Network):
        return 0
    count = 0
    for block in strategy.model.blocks:
        if any(p.requires_grad for p in block.parameters()) or any(m.training for m in block.modules()):
            break
        count += 1
    return count


@contextmanager
def starting_at(strategies: Iterable[Strategy], block: int) -> Iterator[None]:
    """Make the models start at block `block`, whose inputs they are given."""
    models = [strategy.model for strategy in strategies] if block else []
    try:
        for model in models:
            model.start = block
        yield
    finally:
        for model in models:
            model.start = 0


def phase_inputs(strategies: Sequence[Strategy], samples: Sequence[Samples], task: int, drawn: int, batch: int = 0,
                 forward: Forward | None = None, budget: int | None = None,
                 around: Sequence[AbstractContextManager[object]] = ()) -> PhaseInputs:
    """Return the inputs of a phase, with work that every pass would repeat already done.

    Args:
        strategies: the members, in the state in which the phase trains them.
        samples: of each member, raw.
        task: the task that is trained.
        drawn: number of samples that the phase draws.
        batch: number of new samples of a step.
        forward: the arithmetic of the loss (`precision.forward`).
        budget: bytes for what is stored, all members together; by default `BYTES`.
        around: contexts in which outputs of anything frozen are computed, one for each member.

    Raises:
        PluginError: the method declares `inputs_only_through_model`, and its loss is another from frozen blocks.
    """
    budget, forward = BYTES if budget is None else budget, forward or nullcontext()
    first, raw = strategies[0], PhaseInputs(list(samples), list(samples))
    random = any(part.is_stochastic for part in samples)
    if overrides(first, "prepare_batch") or random or drawn < len(samples[0]):
        return raw
    blocks, frozen = 0, False
    if drawn >= 2 * len(samples[0]) and enabled():
        frozen = overrides(first, "frozen_outputs")
        most = min(map(frozen_blocks, strategies)) if declares(first, "inputs_only_through_model") else 0
        # Of a language model, the outputs of the embedding alone would take memory and save nothing.
        most *= most > 1 or not first.stream_info.predicts_tokens
        # Frozen outputs are computed from the inputs, so blocks are not cached without them.
        choices = [(most, frozen), (0, frozen), (0, False)]
        blocks, frozen = next(c for c in choices if not any(c) or fits(strategies, samples, *c, budget))
    if blocks:
        require_same_loss(first, samples[0], task, blocks, forward)
    if blocks or frozen:
        cached_samples = []
        for strategy, part, context in zip(strategies, samples, around or [nullcontext()] * len(samples), strict=True):
            with forward, context:
                cached_samples.append(stored(strategy, part, blocks, frozen))
        return PhaseInputs(cached_samples, list(samples), blocks, True, forward)
    if prepared_in_batches(strategies, samples, drawn, batch) or not fits(strategies, samples, 0, False, budget):
        return raw
    prepared = {id(part): stored(first, part, 0, False) for part in {id(part): part for part in samples}.values()}
    return PhaseInputs([prepared[id(part)] for part in samples], list(samples), prepared=True)


def compute(strategy: Strategy, raw: Samples, blocks: int, frozen: bool = True) -> dict[str, Tensor]:
    """Return what the first blocks make of raw samples, under `INPUTS`, and what `frozen_outputs` returns for them."""
    x = strategy.stream_info.prepare(raw.x)
    outputs = {INPUTS: strategy.model.run(x, 0, blocks) if blocks else x}
    return outputs | (dict(strategy.frozen_outputs(x)) if frozen else {})


def chunk_size(strategy: Strategy, samples: int, frozen: bool) -> int:
    """Return how many samples are computed at once."""
    each = 4 * math.prod(strategy.stream_info.input_shape) * (tokens.WIDTH if strategy.stream_info.is_text else 1)
    most = min(CHUNK, max(SMALLEST_CHUNK, math.ceil(samples / CHUNKS))) if frozen else PREPARED_AT_ONCE
    return min(most, max(1, CHUNK_BYTES // each))


def stored(strategy: Strategy, samples: Samples, blocks: int, frozen: bool) -> Samples:
    """Return prepared samples: what the first blocks make of them, with `frozen_outputs` if they are wanted."""
    columns: dict[str, Tensor] = {}
    done = 0
    with torch.no_grad():
        for raw in samples.chunks(chunk_size(strategy, len(samples), frozen or blocks > 0)):
            for name, part in compute(strategy, raw, blocks, frozen).items():
                if name not in columns:  # written to, not joined at the end: that would take twice the memory
                    columns[name] = torch.empty((len(samples), *part.shape[1:]), dtype=part.dtype, device=part.device,
                                                memory_format=layout(part))
                columns[name][done:done + len(raw)] = part
            done += len(raw)
    x = columns.pop(INPUTS)
    return CachedSamples(x, samples.y, samples.tasks, columns) if columns else Samples(x, samples.y, samples.tasks)


def layout(part: Tensor) -> torch.memory_format:
    """Return the memory format of images whose channels come last, or the usual one."""
    last = part.dim() == IMAGE_DIMS and not part.is_contiguous() and part.is_contiguous(
        memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def fits(strategies: Sequence[Strategy], samples: Sequence[Samples], blocks: int, frozen: bool, budget: int) -> bool:
    """Return whether what would be stored takes no more bytes than the budget."""
    with torch.no_grad():
        one = samples[0].take(torch.arange(1, device=samples[0].index_device))
        size = sum(part.nbytes for part in compute(strategies[0], one, blocks, frozen).values())
    parts = samples if blocks or frozen else {id(part): part for part in samples}.values()
    return size * sum(map(len, parts)) <= budget


def prepared_in_batches(strategies: Sequence[Strategy], samples: Sequence[Samples], drawn: int, batch: int) -> bool:
    """Return whether to prepare each batch when it comes: on a CPU, one trial, a single pass, large batches.

    The values are the same. New memory for all inputs at once takes longer than their arithmetic.
    """
    if len(strategies) > 1 or drawn >= 2 * len(samples[0]) or samples[0].y.device.type != "cpu":
        return False
    return (4 * batch * math.prod(strategies[0].stream_info.input_shape) >= LARGE_BATCH
            and not any(True for _ in strategies[0].frozen_modules()))


def require_same_loss(strategy: Strategy, samples: Samples, task: int, blocks: int, forward: Forward) -> None:
    """Check that the loss of a few samples is the same from the outputs of the first blocks as from their inputs.

    Every bit counts. What is trained is moved a little first: a term that starts at zero would say nothing.

    Raises:
        PluginError: it is not.
    """
    raw = samples.take(torch.arange(min(SMALLEST_CHUNK, len(samples)), device=samples.index_device))
    if raw.x.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    moved = {f"strategy.{n}": p + 0.01 * torch.randn(p.shape, generator=generator).to(p)
             for n, p in strategy.named_parameters() if p.requires_grad}
    buffers = dict(strategy.named_buffers())
    losses = []
    raw = strategy.objective.cut(raw)
    with torch.no_grad(), forward:
        frozen = compute(strategy, raw, blocks)
        later = frozen.pop(INPUTS)
        for x, start in ((strategy.stream_info.prepare(raw.x), 0), (later, blocks)):
            state = moved | {f"strategy.{n}": b.clone() for n, b in buffers.items()}  # running statistics
            with torch.random.fork_rng(), starting_at([strategy], start):
                some = Batch(x, raw.y, raw.tasks, task, frozen=frozen)
                some = strategy.objective.collate([some])[0] if strategy.stream_info.predicts_tokens else some
                try:
                    losses.append(functional_call(Loss(strategy), state, arguments_of(some)))
                except (RuntimeError, ValueError, IndexError, TypeError) as error:
                    if start == 0:
                        raise
                    raise PluginError(misuse(strategy, f"its loss fails: {error}")) from error
    if not identical(*losses):
        raise PluginError(misuse(strategy, f"its loss is {float(losses[1])} and not {float(losses[0])}"))


def identical(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal bit for bit; NaN is equal to NaN."""
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def misuse(strategy: Strategy, how: str) -> str:
    """Return the message for a strategy that does something else with its inputs than to run the model on them."""
    name = type(strategy).__name__
    return (f"{name} declares inputs_only_through_model, but with the outputs of the network's frozen first blocks as "
            f"inputs {' '.join(how.split())[:200]}; set inputs_only_through_model = False in {name}")
