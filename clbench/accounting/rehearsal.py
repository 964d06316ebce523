"""Training rehearsed on shapes: what a recipe's steps compute, without a step being taken.

Every kind of step (batch shape and phase) is run once on torch's meta device, loss, gradients and all, and counted; its
FLOPs are added for each such step of the recipe. From the third pass over a task on, a step is taken to cost what the
step at its place in the pass before did: a replay memory is filled in the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.accounting.flops import ORDINARY, FlopCount
from clbench.accounting.step_flops import Draws, PhaseFlops
from clbench.data.augmentation import Augmentation
from clbench.data.samples import PermutedInputCache, PermutedSamples, Samples, StochasticSamples
from clbench.data.stream import Stream
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Batch, Strategy, Task, overrides
from clbench.training import cache
from clbench.training.attention import KNOWN
from clbench.training.cache import PhaseInputs
from clbench.training.loop import take_step
from clbench.training.sampling import BatchSampler
from clbench.training.steps import make_engine

aten: Any = torch.ops.aten
# How many rows a mask picks is in its values.
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
PLAIN = (Tensor, nn.Parameter)
# Optimisers count as 0, and products as many in any precision; autocast leaves tensors without values as they are.
CHEAP = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": None, "precision": "fp32"}


class Form(NamedTuple):
    """What a tensor is but for its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    meta: bool


def stream_without_values(stream: Stream) -> Stream:
    """Return a stream on the CPU with the shapes and types of its inputs only; labels and tasks keep their values."""
    made: dict[int, Tensor] = {}
    cache = PermutedInputCache()

    def empty(x: Tensor) -> Tensor:
        return made.setdefault(id(x), torch.empty_like(x, device="meta"))

    def samples(part: Samples) -> Samples:
        if isinstance(part, PermutedSamples):
            return PermutedSamples(empty(part.base), part.permutation, part.y, part.tasks, cache)
        if isinstance(part, StochasticSamples):
            x = empty(part.x)
            return StochasticSamples(x, part.y, part.tasks, lambda _: x[0])
        return Samples(empty(part.x), part.y, part.tasks)

    return replace(stream, tasks=tuple(replace(t, train=samples(t.train), test=samples(t.test)) for t in stream.tasks))


class OnShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which operations take tensors of the CPU (labels, masks) beside tensors without values.

    What shapes an operation makes of which is remembered: torch finds out in Python, which takes most of the time.
    """

    made: ClassVar[dict[Hashable, Any]] = {}
    pure: ClassVar[dict[OpOverload, bool]] = {}  # whether an operation makes new tensors only

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; where an argument has no values, no other needs any."""
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload) or any(kind.__torch_dispatch__ is not ORDINARY for kind in types):
            return NotImplemented
        given = [value for value in (*flat(args), *flat(kwargs.values())) if isinstance(value, Tensor)]
        mixed = func.overloadpacket not in BY_INDEX and len({value.is_meta for value in given}) > 1
        if mixed and func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
            raise RuntimeError(f"{func} would write a result without values into a tensor that has some")
        if mixed:
            args, kwargs = tuple(map(shaped, args)), {name: shaped(value) for name, value in kwargs.items()}
        key = self._key(func, given, args, kwargs)
        known = self.made.get(key) if key is not None else None
        if known is not None:
            return remade(known)
        with torch._C.DisableTorchFunction():  # what torch computes shapes with, in Python, need not come by again
            out = func(*args, **kwargs)
        if key is not None and all(value.is_meta for value in flat([out]) if isinstance(value, Tensor)):
            self.made[key] = made_of(out)
        return out

    def _key(self, func: OpOverload, given: Sequence[Tensor], args: Any, kwargs: Any) -> Hashable:
        """Return what an operation and its arguments are recognised by, None where the result may be another."""
        if func not in self.pure:
            parts = (*func._schema.arguments, *func._schema.returns)
            self.pure[func] = func.overloadpacket not in BY_INDEX and all(p.alias_info is None for p in parts)
        if not self.pure[func] or not any(value.is_meta for value in given):
            return None
        key = func, made_of(args), tuple((name, made_of(kwargs[name])) for name in sorted(kwargs))
        try:
            hash(key)
        except TypeError:
            return None
        return key


def flat(values: Any) -> Iterator[Any]:
    """Yield arguments, those inside lists and tuples too."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value


def made_of(value: Any) -> Any:
    """Return a tensor's form, and any other argument as it is."""
    if isinstance(value, Tensor):
        return Form(value.shape, value.stride(), value.dtype, value.is_meta)
    if isinstance(value, list | tuple):
        return type(value) is list, tuple(map(made_of, value))
    return type(value), value


def remade(made: Any) -> Any:
    """Return what `made_of` was given, its tensors without values."""
    if isinstance(made, Form):
        return torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
    kind, value = made
    if isinstance(kind, bool):
        parts = map(remade, value)
        return list(parts) if kind else tuple(parts)
    return value


def shaped(value: Any) -> Any:
    """Return an argument whose tensors have no values."""
    if isinstance(value, list | tuple):
        return type(value)(map(shaped, value))
    return value.to("meta") if isinstance(value, Tensor) and value.dim() else value


class FusedAttention(TorchFunctionMode):
    """A context in which attention on shapes is the fused one that runs take, whose gradients cost more."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if (func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= KNOWN
                and not kwargs.get("dropout_p") and torch._C._get_flash_sdp_enabled()
                and all(type(arg) in PLAIN and arg.is_meta and arg.dim() == 4 for arg in args)
                and args[0].shape[3] == args[2].shape[3]):
            return aten._scaled_dot_product_flash_attention_for_cpu(
                *args, 0.0, kwargs.get("is_causal", False), attn_mask=kwargs.get("attn_mask"),
                scale=kwargs.get("scale"))[0]
        return func(*args, **kwargs)


@contextmanager
def on_shapes() -> Iterator[None]:
    """Enter a context in which strategies train and predict on shapes as they would on values."""
    with OnShapes(), FusedAttention():  # type: ignore[no-untyped-call]
        yield


class Preparing:
    """Counts what a strategy computes to prepare a batch."""

    def __init__(self, strategy: Strategy, draws: Draws) -> None:
        self.strategy = strategy
        self.draws = draws
        self.total = 0

    @contextmanager
    def __call__(self, batch: Batch | None) -> Iterator[None]:
        """Count what is computed in the block; `batch` is given for `augment_batch`."""
        if batch is None:
            with FlopCount() as count:
                yield
            self.total += count.total
        elif overrides(self.strategy, "augment_batch"):
            with self.draws.counted(self.strategy, batch) as flops:
                yield
            self.total += flops[0]
        else:
            yield


def phase_flops(strategy: Strategy, task: Task, samples: Samples, order: BatchSampler, steps: int, recipe: Recipe,
                augment: Augmentation | None) -> int:
    """Return the FLOPs of a phase's steps, its replay memory led through as a run does it.

    Args:
        strategy: in the state in which the phase begins.
        task: the task.
        samples: what its batches are drawn from.
        order: in which they are drawn; it goes on from phase to phase.
        steps: of the phase.
        recipe: its batch size and precision.
        augment: how training images are augmented, None for not at all.

    Raises:
        RuntimeError: the loss asks for values.
    """
    spent = FlopCount()
    inputs = (PhaseInputs([samples], [samples]) if augment or not strategy.world.boundaries else
              cache.phase_inputs([strategy], [samples], task.index, steps * recipe.batch_size, around=[spent]))
    total = spent.total
    engine = make_engine([strategy], recipe.model_copy(update=CHEAP), None)
    count, draws = PhaseFlops([strategy], False), Draws()
    period = -(-len(samples) // recipe.batch_size)
    settled: dict[int, int] = {}  # FLOPs of steps by their place in a pass
    done = 0
    with cache.starting_at([strategy], inputs.start):
        while done < steps:
            if len(settled) == period and not order.left and steps - done >= period:
                whole = (steps - done) // period
                total += whole * sum(settled.values())
                done += whole * period
                continue
            around = Preparing(strategy, draws)
            part = inputs.samples[0]
            batch = order.batch(part) if inputs.prepared else order.ready(strategy, part, around)
            flops = around.total
            kind = count.kind_of([batch])
            if kind not in count.steps:
                with count.counted(engine, [batch]):
                    take_step(engine, [batch])
            flops += sum(count.steps[kind])
            if done and not batch.first_pass:
                settled[len(order.left)] = flops
            total += flops
            done += 1
    return total
