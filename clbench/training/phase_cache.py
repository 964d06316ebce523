"""Caches: inputs and outputs that training does not change are computed once instead of in every step.

Example: a progressive network trains its second column on top of its frozen first one, and is then evaluated.

    samples ---> frozen column 1 ---> h [N, 400]              computed once per phase (`Strategy.frozen_outputs`)
                                        |
    batch = samples[index]              | batch.frozen[...]   its rows, in each step
      |                                 v
      +------> column 2, which learns: relu(W x + U h) ---> loss

    test samples ---> task 1's part ---> predictions          computed once per trial (`Strategy.parts_final`)

A method declares what may be cached (docs/writing-a-strategy.md). In each phase and evaluation, clbench computes one
batch again, which the seed selects; both must be equal bit for bit. A wrong declaration ends the trial with a
`PluginError`; outputs of blocks that changed between evaluations are dropped. `--verify-caches` tests every batch, and
`CLBENCH_CACHE_FROZEN=0` turns these caches off. Prepared inputs need no declaration; a single pass caches only these.
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
from clbench.training.stacked_step import StrategyCall, loss_of

SWITCH = "CLBENCH_CACHE_FROZEN"  # environment variable; 0 turns the caches off
BYTES = 2**30  # limit of what a phase caches, all members together; the execution settings can change it
CHUNK, CHUNK_BYTES = 1024, 2**24  # most samples that frozen blocks compute at once, and most bytes of their inputs
CHUNKS = 8  # smallest number of chunks of the samples, so that computing one chunk again costs little
SMALLEST_CHUNK = 16
PREPARED_AT_ONCE = 256  # samples that are turned into inputs at once; so many fit in the caches of a CPU
LARGE_BATCH = 2**18  # bytes of the inputs of a batch (`prepared_in_batches`)
INPUTS = "inputs"


class CachedSamples(Samples):
    """Prepared samples with their outputs of `Strategy.frozen_outputs`, [N, ...] by name."""

    def __init__(self, x: Tensor, y: Tensor, tasks: Tensor, frozen: Mapping[str, Tensor]) -> None:
        super().__init__(x, y, tasks)
        object.__setattr__(self, "outputs", frozen)

    outputs: Mapping[str, Tensor]

    @property
    def frozen(self) -> Mapping[str, Tensor]:
        """Return the frozen outputs of the samples, by name."""
        return self.outputs

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M])."""
        return CachedSamples(pick(self.x, index), pick(self.y, index), pick(self.tasks, index),
                             {name: pick(rows, index) for name, rows in self.outputs.items()})


@dataclass
class PhaseInputs:
    """The samples that the batches of a phase are drawn from.

    Args:
        samples: the samples of each member, raw, prepared or cached.
        raw: the same samples as the stream stores them.
        start: the block of the network whose inputs `samples` are; 0 without cached blocks.
        prepared: whether `samples` are inputs of the network or of block `start`; else they are raw.
        autocast: the context of the loss (`precision.autocast_context`), in which cached outputs were computed.
    """

    samples: list[Samples]
    raw: list[Samples]
    start: int = 0
    prepared: bool = False
    autocast: AbstractContextManager[object] = field(default_factory=nullcontext)

    @property
    def cached(self) -> bool:
        """Return whether the samples have outputs of frozen parts."""
        return self.start > 0 or any(isinstance(part, CachedSamples) for part in self.samples)

    def verify(self, strategies: Sequence[Strategy], seed: int, everything: bool = False) -> None:
        """Compute a chunk of the first member's cached outputs again and compare; or all chunks of all members.

        Raises:
            PluginError: a part that the method declares as frozen has changed during the phase.
        """
        if not self.cached or self.samples[0].x.is_meta:
            return
        for strategy, raw, cached_samples in zip(strategies, self.raw, self.samples, strict=True):
            size = chunk_size(strategy, len(raw), frozen=True)
            count = math.ceil(len(raw) / size)
            stored_outputs = {INPUTS: cached_samples.x, **(cached_samples.frozen or {})}
            with torch.no_grad(), self.autocast:
                for number in range(count) if everything else (seeds.derive(seed, "cache") % count,):
                    part = next(raw.chunks(size, number))
                    rows = slice(number * size, number * size + len(part))
                    for name, recomputed in compute(strategy, part, self.start).items():
                        cached = stored_outputs.get(name)
                        if cached is not None and not are_identical(cached[rows], recomputed):
                            part_name = "the network's first blocks" if name == INPUTS else f"frozen_outputs[{name!r}]"
                            raise PluginError(
                                f"{type(strategy).__name__}: {part_name} changed while the phase was trained, and "
                                "clbench had computed them once; frozen_outputs may return only what the phase does "
                                "not change, and parameters that change must require a gradient")
            if not everything:
                return


def is_enabled() -> bool:
    """Return whether outputs of frozen parts may be cached, which the environment variable `SWITCH` can turn off."""
    return os.environ.get(SWITCH) != "0"


def frozen_blocks(strategy: Strategy) -> int:
    """Return the number of first blocks of the model that neither learn nor change when they run."""
    if not isinstance(strategy.model, Network):
        return 0
    count = 0
    for block in strategy.model.blocks:
        if any(p.requires_grad for p in block.parameters()) or any(m.training for m in block.modules()):
            break
        count += 1
    return count


@contextmanager
def start_at(strategies: Iterable[Strategy], block: int) -> Iterator[None]:
    """Let the models start at block `block` inside the context; their inputs are then those of this block."""
    starts = [(s.model, s.model.start) for s in strategies if getattr(s.model, "start", block) != block]
    try:
        for model, _ in starts:
            model.start = block
        yield
    finally:
        for model, start in starts:
            model.start = start


def phase_inputs(strategies: Sequence[Strategy], samples: Sequence[Samples], task: int, draws: int, batch: int = 0,
                 autocast: AbstractContextManager[object] | None = None, limit: int | None = None,
                 around: Sequence[AbstractContextManager[object]] = ()) -> PhaseInputs:
    """Return the inputs of a phase; work that every pass would repeat is done once, if it can be cached.

    Args:
        strategies: the members, in the state in which the phase trains them.
        samples: the raw samples of each member.
        task: the index of the task that is trained.
        draws: number of samples that the phase draws.
        batch: number of new samples in a step.
        autocast: the context of the loss (`precision.autocast_context`).
        limit: most bytes to store, all members together; by default `BYTES`.
        around: one context for each member, in which its frozen outputs are computed.

    Raises:
        PluginError: the method declares `inputs_only_through_model`, but its loss from cached blocks is different.
    """
    limit, autocast = BYTES if limit is None else limit, autocast or nullcontext()
    first, raw = strategies[0], PhaseInputs(list(samples), list(samples))
    if overrides(first, "prepare_batch") or draws < len(samples[0]) or any(part.is_stochastic for part in samples):
        return raw
    blocks, frozen = 0, False
    if draws >= 2 * len(samples[0]) and is_enabled():
        frozen = overrides(first, "frozen_outputs")
        most_blocks = min(map(frozen_blocks, strategies)) if declares(first, "inputs_only_through_model") else 0
        # The outputs of a language model's embedding alone would take memory and save nothing.
        most_blocks *= most_blocks > 1 or not first.stream_info.predicts_tokens
        # `frozen_outputs` needs the original inputs, so blocks are cached only if its outputs are cached, too.
        choices = [(most_blocks, frozen), (0, frozen), (0, False)]
        blocks, frozen = next(c for c in choices if not any(c) or fits(strategies, samples, *c, limit, autocast))
    if blocks:
        require_same_loss(first, samples[0], task, blocks, autocast)
    if blocks or frozen:
        cached_samples = []
        for strategy, part, context in zip(strategies, samples, around or [nullcontext()] * len(samples), strict=True):
            with autocast, context:
                cached_samples.append(cache_inputs(strategy, part, blocks, frozen))
        return PhaseInputs(cached_samples, list(samples), blocks, True, autocast)
    if prepared_in_batches(strategies, samples, draws, batch) or not fits(
            strategies, samples, 0, False, limit, autocast):
        return raw
    prepared = {id(part): cache_inputs(first, part, 0, False) for part in {id(part): part for part in samples}.values()}
    return PhaseInputs([prepared[id(part)] for part in samples], list(samples), prepared=True)


def compute(strategy: Strategy, raw: Samples, blocks: int, frozen: bool = True) -> dict[str, Tensor]:
    """Return the outputs of the first blocks for raw samples, with the name `INPUTS`, and their `frozen_outputs`."""
    x = strategy.stream_info.prepare(raw.x)
    outputs = {INPUTS: strategy.model.run(x, 0, blocks) if blocks else x}
    return outputs | (dict(strategy.frozen_outputs(x)) if frozen else {})


def chunk_size(strategy: Strategy, samples: int, frozen: bool) -> int:
    """Return the number of samples that are computed at once."""
    item_bytes = 4 * math.prod(strategy.stream_info.input_shape) * (tokens.WIDTH if strategy.stream_info.is_text else 1)
    limit = min(CHUNK, max(SMALLEST_CHUNK, math.ceil(samples / CHUNKS))) if frozen else PREPARED_AT_ONCE
    return min(limit, max(1, CHUNK_BYTES // item_bytes))


def cache_inputs(strategy: Strategy, samples: Samples, blocks: int, frozen: bool) -> Samples:
    """Return samples whose inputs are the outputs of the first blocks, with their `frozen_outputs` if `frozen`."""
    columns: dict[str, Tensor] = {}
    offset = 0
    with torch.no_grad():
        for raw in samples.chunks(chunk_size(strategy, len(samples), frozen or blocks > 0)):
            for name, part in compute(strategy, raw, blocks, frozen).items():
                if name not in columns:  # not `torch.cat` at the end, which takes twice the memory
                    columns[name] = torch.empty((len(samples), *part.shape[1:]), dtype=part.dtype, device=part.device,
                                                memory_format=layout(part))
                columns[name][offset:offset + len(raw)] = part
            offset += len(raw)
    x = columns.pop(INPUTS)
    return CachedSamples(x, samples.y, samples.tasks, columns) if columns else Samples(x, samples.y, samples.tasks)


def layout(part: Tensor) -> torch.memory_format:
    """Return the memory format of a tensor: channels-last or contiguous."""
    is_channels_last = part.dim() == IMAGE_DIMS and not part.is_contiguous() and part.is_contiguous(
        memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format


def fits(strategies: Sequence[Strategy], samples: Sequence[Samples], blocks: int, frozen: bool, limit: int,
         autocast: AbstractContextManager[object]) -> bool:
    """Return whether the outputs to be stored, computed in the context `autocast`, take at most `limit` bytes."""
    with torch.no_grad(), autocast:
        sample = samples[0].take(torch.arange(1, device=samples[0].index_device))
        size = sum(part.nbytes for part in compute(strategies[0], sample, blocks, frozen).values())
    return size * sum(map(len, samples if blocks or frozen else {id(s): s for s in samples}.values())) <= limit


def prepared_in_batches(strategies: Sequence[Strategy], samples: Sequence[Samples], draws: int, batch: int) -> bool:
    """Return whether to prepare each batch when it is drawn: for one trial on a CPU, a single pass and large batches.

    The values are the same. Allocating memory for all inputs at once would take longer than preparing them.
    """
    if len(strategies) > 1 or draws >= 2 * len(samples[0]) or samples[0].y.device.type != "cpu":
        return False
    return (4 * batch * math.prod(strategies[0].stream_info.input_shape) >= LARGE_BATCH
            and not any(True for _ in strategies[0].frozen_modules()))


def require_same_loss(strategy: Strategy, samples: Samples, task: int, blocks: int,
                      autocast: AbstractContextManager[object]) -> None:
    """Check that the loss of a few samples is the same if the model starts from the outputs of its first blocks.

    The losses must be equal bit for bit. Trained parameters are changed a little first, because a term that starts at
    zero would hide a difference.

    Raises:
        PluginError: the losses differ.
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
    with torch.no_grad(), autocast:
        frozen = compute(strategy, raw, blocks)
        block_outputs = frozen.pop(INPUTS)
        for x, start in ((strategy.stream_info.prepare(raw.x), 0), (block_outputs, blocks)):
            state = moved | {f"strategy.{n}": b.clone() for n, b in buffers.items()}  # the loss may change them
            with torch.random.fork_rng(), start_at([strategy], start):
                batch = Batch(x, raw.y, raw.tasks, task, frozen=frozen)
                batch = strategy.objective.collate([batch])[0] if strategy.stream_info.predicts_tokens else batch
                try:
                    losses.append(functional_call(StrategyCall(strategy, loss_of), state, (batch,)))
                except (RuntimeError, ValueError, IndexError, TypeError) as error:
                    if start == 0:
                        raise
                    raise PluginError(explain_misuse(strategy, f"its loss fails: {error}")) from error
    if not are_identical(*losses):
        raise PluginError(explain_misuse(strategy, f"its loss is {float(losses[1])} and not {float(losses[0])}"))


def are_identical(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and values; NaN is equal to NaN."""
    same_kind = (one.shape, one.dtype) == (other.shape, other.dtype)
    return same_kind and (torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def explain_misuse(strategy: Strategy, how: str) -> str:
    """Return the error message for a strategy that uses its inputs in other ways than through the model."""
    name = type(strategy).__name__
    return (f"{name} declares inputs_only_through_model, but with the outputs of the network's frozen first blocks as "
            f"inputs {' '.join(how.split())[:200]}; set inputs_only_through_model = False in {name}")
