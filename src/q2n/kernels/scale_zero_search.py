r"""Scale and zero point of each group with the least `sum |w - quantized|^2.4`, by brute force.

What makes it affordable, on a CPU:

- a sum stops as soon as it exceeds the least one, which most candidates do early;
- `v = |d|^2` gives `|d|^2.4 = v^1.2 = (v y^2)^2` with `y = v^(-1/5)`, and y comes from Newton's
  iteration for `y^-5 = v`, `y <- y (6 - v y^5) / 5`: products only, in vector instructions. A
  number's bits, read as an integer, are about its logarithm; that gives the first guess.
"""

from collections.abc import Callable
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Search = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(values [n, size], scales [n, steps], zeros, top) -> index of the best scale and the best
zero point, [n] each."""


_POWER = 2.4


_SPAN = 64
"""Weights between two looks at the least sum."""


def search(
    values: Float[Tensor, "n size"],
    scales: Float[Tensor, "n steps"],
    zeros: Int[Tensor, " zeros"],
    top: int,
    on_device: Search | None = None,
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Which of its `scales`, and which of `zeros`, serves each row of values best.
    `on_device` defaults to the way of the device."""
    if on_device is None:
        on_device = search_with_numba if values.device.type == "cpu" else search_with_tensors
    return on_device(values, scales, zeros, top)


def search_with_numba(
    values: Tensor, scales: Tensor, zeros: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """Rows in parallel, on a CPU."""
    best, zero = torch.zeros(2, len(values), dtype=torch.int64)
    given = (values.contiguous(), scales.contiguous(), zeros)
    _kernel(*(t.numpy() for t in given), top, best.numpy(), zero.numpy())
    return best, zero


# Sums may be taken in any order, which lets them run in vector registers.
@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"reassoc"})
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


def search_with_tensors(
    values: Tensor, scales: Tensor, zeros: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """The same in tensor operations, for a device that numba does not reach."""
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
