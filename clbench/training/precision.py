"""Numerical precision, compilation and attention of losses and predictions.

On a CPU, `scaled_dot_product_attention` has no batching rule, and `vmap` falls back to a loop over members and samples.
`FoldedAttention` replaces it by a function with such a rule, without a change to the model. The rule reshapes
[S, N, heads, L, d] to [S * N, heads, L, d] and calls the original function. Also on a CPU, gradients of attention over
few tokens are slow in bfloat16, so they are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clbench.core.device import out_of_memory
from clbench.core.errors import SpecError, message_of
from clbench.core.torch_private import is_inside_vmap, storage_id, write_count
from clbench.experiment.recipe import Recipe

SHORT = 128  # tokens, up to which bfloat16 slows gradients of attention on a CPU (benchmarks/speed/attention.py)
KNOWN = {"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"}  # calls with others are left to torch


class FoldedAttention(TorchFunctionMode):
    """Context in which attention inside `vmap` runs on all members at once; `calls` counts these calls."""

    def __init__(self) -> None:
        """Start counting calls."""
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call a torch function; in attention of batches, fold the dimension of the members into the batch."""
        kwargs = kwargs or {}
        if (func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= KNOWN
                and not kwargs.get("dropout_p") and any(map(is_inside_vmap, args)) and min(a.dim() for a in args) > 2):
            self.calls += 1
            return _Folded.apply(  # type: ignore[no-untyped-call]
                *with_all_heads(args, kwargs), kwargs.get("attn_mask"), kwargs.get("is_causal", False),
                kwargs.get("scale"))
        return func(*args, **kwargs)


def with_all_heads(qkv: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values; if groups of heads share keys and values (enable_gqa), repeat them per head."""
    q, k, v = qkv
    if kwargs.get("enable_gqa"):
        k, v = (part.repeat_interleave(q.shape[-3] // part.shape[-3], -3) for part in (k, v))
    return q, k, v


class _Folded(torch.autograd.Function):
    """Attention with a rule for vmap; the function that the rule calls computes the gradients."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
        """Return the attention of tensors that are not stacked."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing, because the function that the rule calls has gradients of its own."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
             is_causal: bool, scale: float | None) -> tuple[Tensor, int]:
        """Fold the dimension of the members into the batch, compute attention, and unfold the result."""
        size = info.batch_size

        def fold(tensor: Tensor, dim: int | None) -> Tensor:
            stacked = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return stacked.flatten(0, 1)

        q, k, v = fold(q, in_dims[0]), fold(k, in_dims[1]), fold(v, in_dims[2])
        if mask is not None:  # [..., L, L] for each member; leading dimensions may be missing, as in broadcasting
            mask = mask.expand(size, *mask.shape) if in_dims[3] is None else mask.movedim(in_dims[3], 0)
            mask = mask.reshape(size, *[1] * (q.dim() - mask.dim() + 1), *mask.shape[1:])
            mask = mask.expand(size, len(q) // size, *mask.shape[2:]).flatten(0, 1)
        out: Any = attend(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
        return out.unflatten(0, (size, -1)), 0


def attend(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    """Return attention of [..., tokens, width]; with CPU autocast, gradients and few tokens, compute it in float32."""
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if (not learns or max(q.shape[-2], k.shape[-2]) > SHORT or q.device.type != "cpu"
            or not torch.is_autocast_enabled("cpu")):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)
    mask = kwargs.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        kwargs = {**kwargs, "attn_mask": mask.float()}
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **kwargs).bfloat16()


LossFunction = Callable[..., Tensor]
MANY = 2**20  # parameters; with fewer, intercepting every torch call takes more time than it saves
PRODUCTS = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
            F.conv_transpose3d}
NORMS = {F.batch_norm, F.instance_norm}
SHOWN = 200  # characters of the compiler's errors, which can be pages long


class Compiler:
    """Compiles the loss of each phase. A loss that cannot be compiled runs uncompiled, and `notes` has the reason."""

    def __init__(self, device: torch.device, backend: str = "inductor", accumulates: bool = False) -> None:
        """Compile for a device.

        Args:
            device: the device of the training.
            backend: that of `torch.compile`; only tests use another one than the default.
            accumulates: whether gradients of several losses are added. CUDA graphs are then not used, because the next
                replay of a graph overwrites the gradients of the previous one.
        """
        self.device = device
        self.graphs = device.type == "cuda" and not accumulates
        self.backend = backend
        self.notes: list[str] = []

    def probe(self) -> None:
        """Compile a tiny function, to test the compiler and to import it, which takes seconds.

        Raises:
            SpecError: this machine has no working compiler for the device.
        """
        try:
            self._compile(torch.sin)(torch.zeros(2, device=self.device))
        except Exception as error:  # the compiler's errors have no common base class
            raise SpecError(f"--compile does not work here ({_summary(error)}); it needs a C++ compiler such as g++ "
                            "on a CPU, Triton and a C compiler on CUDA") from error

    def __call__(self, loss: LossFunction, obstacle: str = "") -> LossFunction:
        """Return a loss that is compiled when it is first called, and again for batches of other sizes.

        If compiling fails, the note begins with `obstacle`, a sentence on why it probably did and what to do.
        """
        # Code compiled for earlier phases is of no use, because parameters have been added or frozen since. It would
        # still count towards the limit of recompilations, which a growing model would reach.
        torch.compiler.reset()
        compiled: LossFunction | None = self._compile(loss)

        def run(*args: Any) -> Tensor:
            nonlocal compiled
            if compiled is None:
                return loss(*args)
            try:
                if not self.graphs:
                    return compiled(*args)
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                return compiled(*args).clone()  # the next replay overwrites the original
            except Exception as error:  # from the compiler, or from the loss, which then fails again uncompiled
                if out_of_memory(error):
                    raise  # the trial runner then tries smaller stacks
                compiled = None
                note = f"not compiled, ran as it is: {obstacle}{_summary(error)}"
                if note not in self.notes:
                    self.notes.append(note)
                return loss(*args)

        return run

    def _compile(self, function: LossFunction) -> LossFunction:
        """Return a function that is compiled as one graph or not at all."""
        return torch.compile(function, fullgraph=True, backend=self.backend,
                             mode="reduce-overhead" if self.graphs else None)


def _summary(error: Exception) -> str:
    """Return the type of an error and the start of its message, on one line."""
    text = message_of(error)
    return f"{type(error).__name__}: {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}"


def autocast_context(recipe: Recipe, device: torch.device, module: nn.Module | None = None,
                     stacked: bool = False) -> AbstractContextManager[object]:
    """Return the context for losses in training and for predictions; it may be entered many times.

    With bf16, matrix products and convolutions run in bfloat16; weights, optimizer and losses stay float32. So do the
    computations of strategies outside their loss, because squares of small gradients and sums over a task would lose
    too much precision.

    Args:
        recipe: the recipe that sets the precision.
        device: the device of the computation.
        module: the module that runs, None if it is compiled. Large uncompiled modules use the faster `Bfloat16`.
        stacked: whether it runs under `torch.func.vmap`.
    """
    if recipe.precision != "bf16":
        return nullcontext()
    parameters = module.parameters() if module is not None else ()
    served_count = sum(p.numel() for p in parameters if device.type == "cpu" or not p.requires_grad)
    return Bfloat16(device) if stacked or served_count >= MANY else torch.autocast(device.type, torch.bfloat16)


class Bfloat16(TorchFunctionMode):
    """Autocast to bfloat16 with five differences.

    - Frozen weights are rounded once. Autocast rounds them again in every product: 22 million values of a ViT-S in each
      step, 8 % of its time. The values are the same. A weight is rounded again if torch's count of writes or its
      storage has changed.
    - Inside `torch.func.vmap`, autocast leaves convolutions on a CPU and the biases of linear layers in float32, and
      therefore everything that follows them. This class rounds their inputs there, too.
    - Inside `torch.func.vmap`, batch and instance normalization on a CPU fail for inputs in bfloat16 and statistics in
      float32. They run in float32, and their result is rounded, as torch does outside.
    - Inside `torch.func.vmap`, `torch.dot` becomes a matrix product, which autocast would round. It stays in float32,
      as outside.
    - On a CPU, attention over few tokens with gradients is computed in float32, and its result is rounded. In bfloat16,
      torch takes up to 2.5 times as long for its gradients.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without rounded weights."""
        super().__init__()
        self.autocast = torch.autocast(device.type, torch.bfloat16)
        self.copies: dict[int, Rounded] = {}

    def __enter__(self) -> Bfloat16:
        """Start autocast."""
        self.autocast.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """End autocast."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.autocast.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a torch function; in a product, first round the inputs that autocast would round late or not at all."""
        kwargs = kwargs or {}
        if (func in PRODUCTS and type(args[0] if args else kwargs.get("input")) is Tensor
                and torch.is_autocast_enabled(self.autocast.device)):  # code may switch it off for a part
            args = [self.round_tensor(a) if isinstance(a, Tensor) else a for a in args]
            kwargs = {n: self.round_tensor(a) if isinstance(a, Tensor) else a for n, a in kwargs.items()}
        elif func is F.scaled_dot_product_attention and len(args) == 3:
            return attend(*args, **kwargs)
        elif (func in NORMS and is_inside_vmap(args[0]) and args[0].dtype == torch.bfloat16
              and self.autocast.device == "cpu"):
            return func(args[0].float(), *args[1:], **kwargs).bfloat16()
        elif func is torch.dot:
            with torch.autocast(self.autocast.device, enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def round_tensor(self, tensor: Tensor) -> Tensor:
        """Return a float32 tensor in bfloat16; a trained parameter stays as it is, because autocast caches its copy."""
        if tensor.dtype != torch.float32:
            return tensor
        if type(tensor) is not nn.Parameter:
            return tensor.bfloat16()
        if tensor.requires_grad:
            return tensor
        rounded = self.copies.get(id(tensor))
        if rounded is None or not rounded.current():
            rounded = self.copies[id(tensor)] = Rounded(tensor, write_count(tensor), tensor.detach(), tensor.bfloat16())
        return rounded.copy


class Rounded(NamedTuple):
    """A frozen weight, its write count and its values when it was rounded, and its copy in bfloat16."""

    weight: nn.Parameter  # a reference, so that no other object gets its id
    version: int
    values: Tensor
    copy: Tensor

    def current(self) -> bool:
        """Return whether the weight still has these values, without reading its address, which would end sharing."""
        return write_count(self.weight) == self.version and storage_id(self.values) == storage_id(self.weight)


@contextmanager
def allow_tf32(recipe: Recipe) -> Iterator[None]:
    """Let CUDA's matrix products and convolutions inside the block use TensorFloat-32 if the recipe says so."""
    old_settings = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if recipe.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(old_settings[0])
        torch.backends.cudnn.allow_tf32 = old_settings[1]
