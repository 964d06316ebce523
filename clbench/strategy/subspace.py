"""Subspaces of a layer's inputs: measure them, grow them by GPM's criterion, and store them.

All functions take the uncentered second moment C = sum x x^T of a layer's inputs. Its eigenvectors are the left
singular vectors of the matrix of inputs. Its eigenvalues are the squares of the singular values, called energy. A
subspace is represented by the projector P onto it.

The upper triangle of P is stored. Unlike a basis, P is unique, and its shape does not depend on values, so that trials
can be vectorized and storage can be counted without data. DualGPM stores a basis of the subspace or of its orthogonal
complement, the smaller of the two (Liang & Li 2023, Adaptive Plasticity Improvement for Continual Learning, CVPR). The
d (d + 1) / 2 values of P are about the maximum size of this basis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core import tokens
from clbench.core.errors import DivergedError, SpecError
from clbench.data.samples import Samples
from clbench.models.network import SAME
from clbench.strategy.base import Strategy
from clbench.strategy.common_options import Criterion
from clbench.strategy.gaussians import ITEMS
from clbench.strategy.per_sample_gradients import evaluating

CHUNK = 64  # samples per forward pass when inputs are collected
ROUNDING = 32  # energies smaller than this multiple of epsilon times the total count as rounding errors


@torch.no_grad()
def input_moments(strategy: Strategy, run: Callable[[Tensor], Tensor], layers: Mapping[str, nn.Module],
                  samples: Samples, inner: Callable[[Any], Any] = lambda layer: layer) -> dict[str, Tensor]:
    """Return the uncentered second moment [d, d] of each layer's inputs over raw samples, in eval mode, by layer name.

    For texts, padding is excluded: blocks may set their outputs to 0 there, but not the inputs of layers inside them.

    Args:
        strategy: the strategy, whose `stream_info.prepare` prepares the samples.
        run: runs the part of the network that calls the layers, on prepared inputs.
        layers: the layers by name.
        samples: raw samples.
        inner: maps a layer to the layer that is passed to `rows`. Default: the layer itself.

    Raises:
        SpecError: a layer is never called, so its inputs are unknown.
    """
    sums: dict[str, Tensor] = {}
    token_mask: Tensor | None = None  # bool [N, L], false for padding

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        # Some models, such as OPT, flatten their tokens before a layer. After the pooling there is a vector per text.
        if token_mask is not None and x.numel() == token_mask.numel() * x.shape[-1]:
            x = x.flatten(0, -2) * token_mask.flatten().unsqueeze(-1)
        input_rows = rows(inner(layer), x)
        moment = input_rows.T @ input_rows / len(samples)
        sums[name] = sums[name] + moment if name in sums else moment

    handles = [layer.register_forward_pre_hook(functools.partial(note, name)) for name, layer in layers.items()]
    try:
        with evaluating(strategy):
            chunks = samples.chunks(ITEMS if strategy.stream_info.predicts_tokens else CHUNK)
            for part in map(strategy.objective.cut, chunks):
                token_mask = tokens.present(part.x) if strategy.stream_info.is_text else None
                run(strategy.stream_info.prepare(part.x))
    finally:
        for handle in handles:
            handle.remove()
    if uncalled := [name for name in layers if name not in sums]:
        raise SpecError(f"{uncalled[0]} is never called, so it has no inputs to learn from")
    return {name: sums[name] for name in layers}


def rows(layer: Any, x: Tensor) -> Tensor:
    """Return the vectors that a layer multiplies by its weight, one per output position: [M, in] or [M, in·kh·kw].

    Args:
        layer: a Linear or Conv2d layer, or a module whose weight has the layout of a Linear layer.
        x: the input of the layer, [..., in], or images [N, in, H, W].
    """
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padding = same_padding(layer, x) if type(layer).__name__ == SAME else layer._reversed_padding_repeated_twice
    padded = F.pad(x, padding, mode)
    patches = F.unfold(padded, (layer.kernel_size[0], layer.kernel_size[1]), (layer.dilation[0], layer.dilation[1]),
                       0, (layer.stride[0], layer.stride[1]))
    return patches.transpose(1, 2).flatten(0, 1)


def same_padding(layer: nn.Conv2d, x: Tensor) -> list[int]:
    """Return the padding of a "same" convolution for images x: left, right, top, bottom.

    There are ceil(side / stride) outputs along each side, as in TensorFlow. If the total padding of an axis is odd, the
    right or bottom side gets one more.
    """
    padding = []
    for axis in (1, 0):  # `F.pad` takes the width first
        side, stride = x.shape[axis - 2], layer.stride[axis]
        reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
        total = max((math.ceil(side / stride) - 1) * stride + reach - side, 0)
        padding += [total // 2, total - total // 2]
    return padding


def directions(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues [d], largest first, and eigenvectors [d, d] as columns, in float64.

    The largest entry of each vector is positive, so that the sign does not depend on the solver.

    Raises:
        DivergedError: the matrix is not finite.
    """
    if not symmetric.is_meta and not symmetric.isfinite().all():
        raise DivergedError("the inputs of a layer became NaN or infinite")
    values, vectors = torch.linalg.eigh(symmetric.double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def residual(moment: Tensor, projector: Tensor) -> Tensor:
    """Return the second moment [d, d] of the part of the inputs outside a subspace, in float64."""
    free = torch.eye(len(moment), dtype=torch.float64, device=moment.device) - projector.double()
    return free @ moment.double() @ free


def grown(moment: Tensor, projector: Tensor, threshold: float, criterion: Criterion = "inputs") -> Tensor:
    """Return the projector [d, d] onto a subspace, extended by the fewest directions that reach a share of the energy.

    `inputs` is the criterion of GPM (Saha et al. 2021, arXiv 2103.09762, equation 9): |P X|^2 + |(X - PX)_k|^2 >=
    threshold |X|^2 with the smallest k, for inputs X as columns.

    `moment` is the criterion in the reference code of InfLoRA (liangyanshuo/InfLoRA, `update_DualGPM`). It has the
    second moment C = X X^T in place of X, so the energies are eigenvalues of C^2, the fourth powers of the singular
    values of X. If the subspace is empty, it adds one direction fewer than needed, but at least one.

    Args:
        moment: the second moment of the inputs [d, d].
        projector: P of the subspace so far [d, d].
        threshold: share of the energy, in (0, 1].
        criterion: the definition of energy, see above.
    """
    matrix, floor, values, vectors = spectrum_outside(moment, projector, criterion)
    total = matrix.trace()
    energy = total - values.sum() + values.cumsum(0) - values  # before each direction is added
    needed = energy < threshold * total
    if criterion == "moment":
        is_empty = ~projector.any()
        needed = torch.where(is_empty, energy + values < threshold * total, needed)
        needed[0] |= is_empty
    new_directions = vectors * (needed & (values > floor))
    return projector.double() + new_directions @ new_directions.T


def spectrum_outside(moment: Tensor, projector: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return C or C^2 (`criterion`) [d, d] and its smallest energy that is not rounding, both in float64.

    Also return the energies [d] and directions [d, d] of this matrix outside the subspace of a projector P [d, d].
    """
    matrix, floor = moment.double(), rounding(moment)
    if criterion == "moment":
        matrix = matrix @ matrix
        floor = torch.maximum(floor**2, rounding(matrix))
    values, vectors = directions(residual(matrix, projector))
    return matrix, floor, values, vectors


def packed(projector: Tensor) -> Tensor:
    """Return the d (d + 1) / 2 independent numbers of a symmetric matrix [d, d]."""
    above = _triangle_indices(projector)
    return projector[above[0], above[1]]


def unpacked(numbers: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix [size, size], given the result of `packed`."""
    matrix = numbers.new_zeros(size, size)
    i, j = _triangle_indices(matrix)
    matrix[i, j] = numbers
    matrix[j, i] = numbers
    return matrix


def _triangle_indices(matrix: Tensor) -> Tensor:
    """Return the row and column indices [2, d (d + 1) / 2] of the entries on and above the diagonal."""
    return torch.triu_indices(*matrix.shape, device=matrix.device)


def rounding(moment: Tensor) -> Tensor:
    """Return the threshold, a scalar in float64, below which energies are rounding errors of the moment's dtype."""
    return ROUNDING * torch.finfo(moment.dtype).eps * moment.double().trace()
