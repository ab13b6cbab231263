r"""Exhaustive search for scale and zero point of a group: least `sum |w - quantized|^2.4`.

A candidate is one of the group's scales with one of the zero points z; then
`quantized = s clamp(round(w / s), -z, top - z)`. grids/scale_zero_search.py says which candidates.

The numba kernel makes this affordable on a CPU:

- a sum ends as soon as it exceeds the least one so far, which most candidates do early;
- `v = |d|^2` gives `|d|^2.4 = v^1.2 = (v y^2)^2` with `y = v^(-1/5)`. Newton's iteration for
  `y^-5 = v`, `y <- y (6 - v y^5) / 5`, gives y by multiplications and subtractions alone, in vector
  instructions. The bits of a number, read as an integer, approximate its logarithm: that gives the
  first value of y.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from q2n.kernels.compiled import compiled
from q2n.kernels.optional import has_triton

_POWER = 2.4
_SPAN = 64
"""Weights between two comparisons with the least sum so far."""


def scale_zero_search_reference(
    values: Float[Tensor, "rows size"],
    scales: Float[Tensor, "rows steps"],
    zeros: Int[Tensor, " zeros"],
    top: int,
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Index of the best of each row's `scales`, and the best of `zeros`, for codes 0..top.

    Of pairs that are equally good the largest scale wins, then the first zero point. On any
    device."""
    least = values.new_full((len(values),), torch.inf)
    best, zero = torch.zeros(2, len(values), dtype=torch.int64, device=values.device)
    for i in range(scales.shape[1] - 1, -1, -1):
        scale = scales[:, i : i + 1]
        rounded = torch.round(values / scale)
        for z in zeros.tolist():
            error = values - scale * rounded.clamp(-z, top - z)
            total = error.abs_().pow_(_POWER).sum(1)
            better = total < least
            least = torch.where(better, total, least)
            best.masked_fill_(better, i)
            zero.masked_fill_(better, z)
    return best, zero


def scale_zero_search_numba(
    values: Float32[Tensor, "rows size"],
    scales: Float32[Tensor, "rows steps"],
    zeros: Int[Tensor, " zeros"],
    top: int,
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The same in float32 on a CPU, rows in parallel."""
    best, zero = torch.zeros(2, len(values), dtype=torch.int64)
    tensors = (values.contiguous(), scales.contiguous(), zeros)
    _kernel(*(tensor.numpy() for tensor in tensors), top, best.numpy(), zero.numpy())
    return best, zero


def scale_zero_search_triton(
    values: Float[Tensor, "rows size"],
    scales: Float[Tensor, "rows steps"],
    zeros: Int[Tensor, " zeros"],
    top: int,
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The same in float32 on a GPU: in Triton where it is installed."""
    if not has_triton():
        return scale_zero_search_reference(values, scales, zeros, top)
    from q2n.kernels import triton_searches  # needs triton

    return triton_searches.scale_zero_search(values, scales, zeros, top)


# Sums may be taken in any order, which lets them run in vector registers.
@compiled(parallel=True, fastmath={"reassoc"})
@no_type_check
def _kernel(values, scales, zeros, top, best, zero):
    one_fifth, six_fifths = np.float32(0.2), np.float32(1.2)
    tiny = np.float32(1e-20)  # keeps the root of 0 finite; the least scale is 1 / steps here
    guess = np.float32(1.2 * 2**23 * (127 - 0.045))  # of 1.0, less the mean error of the logarithm
    for row in numba.prange(len(values)):
        square = np.empty(_SPAN, np.float32)
        root = np.empty(_SPAN, np.float32)
        square_bits, root_bits = square.view(np.int32), root.view(np.int32)
        least = np.float32(np.inf)
        for i in range(scales.shape[1] - 1, -1, -1):
            scale = scales[row, i]
            inverse = np.float32(1) / scale
            for z in zeros:
                low, high = np.float32(-z), np.float32(top - z)
                total = np.float32(0)
                for start in range(0, values.shape[1], _SPAN):
                    w = values[row, start : start + _SPAN]
                    for j in range(len(w)):
                        d = w[j] - scale * min(max(np.rint(w[j] * inverse), low), high)
                        square[j] = d * d + tiny
                    for j in range(len(w)):
                        root_bits[j] = np.int32(guess - one_fifth * np.float32(square_bits[j]))
                    for j in range(len(w)):
                        v, y = square[j], root[j]
                        for _ in range(3):
                            y2 = y * y
                            y *= six_fifths - one_fifth * v * (y2 * y2 * y)
                        part = v * (y * y)
                        total += part * part
                    if total >= least:
                        break
                if total < least:
                    least = total
                    best[row], zero[row] = i, z
