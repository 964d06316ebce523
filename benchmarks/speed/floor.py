"""The arithmetic floor: the FLOPs of one training step, and the speed of its matrix products alone on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from measure import Outcome, Setting
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

BLOCKS, BLOCK_SECONDS = 7, 0.05


@dataclass(frozen=True)
class Product:
    """One matrix product [m, k] x [k, n] of a training step, with the strides of its factors."""

    m: int
    n: int
    k: int
    strides: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # None means contiguous

    @property
    def flops(self) -> int:
        """Return the number of multiplications and additions."""
        return 2 * self.m * self.n * self.k

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return random factors with these shapes and strides."""
        a, b = self.strides or ((self.k, 1), (self.n, 1))
        pair = (torch.empty_strided((self.m, self.k), a, device=device),
                torch.empty_strided((self.k, self.n), b, device=device))
        return pair[0].normal_(), pair[1].normal_()


class Recorder(TorchDispatchMode):
    """Context that records every matrix product; a convolution counts as the products of its unfolded form."""

    def __init__(self) -> None:
        """Start without products."""
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record its matrix products."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name
        if name in ("aten::mm", "aten::addmm"):
            a, b = args[-2:]
            self.products.append(Product(a.shape[0], b.shape[1], a.shape[1], (a.stride(), b.stride())))
        elif name == "aten::convolution":
            rows, wide, channels = unfolded(out, args[1])
            self.products.append(Product(rows, channels, wide))
        elif name == "aten::convolution_backward":
            rows, wide, channels = unfolded(args[0], args[2])
            to_input, to_weight, _ = args[-1]
            self.products += [Product(rows, wide, channels)] * to_input + [Product(channels, wide, rows)] * to_weight
        return out


def unfolded(out: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """Return the sizes of an unfolded convolution: output positions, inputs of each position, output channels."""
    return out.numel() // out.shape[1], weight[0].numel(), weight.shape[0]


def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Run a step's forward and backward passes; the optimizer multiplies no matrices."""
    F.cross_entropy(model(x), y).backward()


def products_of(model: nn.Module, x: Tensor, y: Tensor) -> list[Product]:
    """Return the matrix products of a training step.

    Raises:
        RuntimeError: torch's FLOP counter gives a different number of FLOPs.
    """
    with FlopCounterMode(display=False) as counter:
        step(model, x, y)
    with Recorder() as recorder:
        step(model, x, y)
    counted, found = counter.get_total_flops(), sum(p.flops for p in recorder.products)
    if counted != found:
        raise RuntimeError(f"the step has {counted} FLOPs by torch's counter and {found} in its matrix products")
    return recorder.products


def seconds_of(product: Product, device: torch.device) -> float:
    """Return the seconds of a product, the best of several blocks. The memory of the result is allocated before."""
    from clbench.core.device import synchronize

    a, b = product.factors(device)
    out = torch.empty(product.m, product.n, device=device)

    def block(count: int) -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=out)
        synchronize(device)
        return (time.perf_counter() - began) / count

    block(3)
    count = max(1, round(BLOCK_SECONDS / block(3)))
    return min(block(count) for _ in range(BLOCKS))


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Measure the floor of a model at a batch size."""
    from work import STREAMS, model_of

    setting = Setting(**{**request, "seeds": tuple(request["seeds"])})
    device = torch.device(setting.device)
    x = torch.rand(setting.batch_size, *STREAMS[setting.benchmark].shape, device=device)
    y = torch.zeros(setting.batch_size, dtype=torch.int64, device=device)
    products = products_of(model_of(setting), x, y)
    ready, began = time.time() - started, time.perf_counter()
    seconds = sum(seconds_of(product, device) for product in products)
    flops = sum(product.flops for product in products)
    return asdict(Outcome(train=0.0, consolidate=0.0, evaluate=0.0, whole=time.perf_counter() - began,
                          ready_after=ready, train_samples=0, processed=0, test_samples=0, flops=flops,
                          rate=flops / seconds))
