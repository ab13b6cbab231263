r"""Moments of blocks of weights that are rounded to levels: all that a search for scales needs.

For a block of weights `x_j` with importance `omega_j`, a step `a` and a minimum `b`:

    l_j = the level nearest to (x_j - b) / a
    moments:  sum omega l,  sum omega l^2,  sum omega x l.

With these levels, the error of any other step and minimum is a quadratic form,

    sum omega (x - a' l - b')^2 = X - 2 (a' xl + b' x) + a'^2 ll + 2 a' b' l + b'^2 1

(each letter a sum with omega), whose least values have closed forms (grids/block_search.py).

Levels are ascending. Even ones, 1 apart, are found by rounding, others by counting the midpoints
below, which vectorises as a table look-up does not. Sums are in float64: of an error of 8 bits
float32 would leave two digits. A step of 0 gives level 0, or the least one where 0 is none.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from q2n.kernels.compiled import compiled
from q2n.kernels.optional import has_triton
from q2n.kernels.rounding_rules import midpoints


def level_moments_reference(
    values: Float[Tensor, "blocks size"],
    omega: Float[Tensor, "blocks size"],
    step: Float[Tensor, "blocks tried"],
    minimum: Float[Tensor, "blocks tried"],
    levels: Float[Tensor, " levels"],
) -> Float64[Tensor, "blocks tried 3"]:
    """The three moments of every block and pair of step and minimum. On any device."""
    inverse = torch.where(step == 0, 0, 1 / step)
    borders = (levels[1:] + levels[:-1]) / 2
    moments = []
    for a, b in zip(inverse.T, minimum.T, strict=True):
        position = (values - b.unsqueeze(1)) * a.unsqueeze(1)
        level = levels[torch.searchsorted(borders, position.contiguous())].double()
        weighed = omega * level
        sums = (weighed.sum(1), (weighed * level).sum(1), (weighed * values).sum(1))
        moments.append(torch.stack(sums, 1))
    return torch.stack(moments, 1)


def level_moments_numba(
    values: Float[Tensor, "blocks size"],
    omega: Float[Tensor, "blocks size"],
    step: Float[Tensor, "blocks tried"],
    minimum: Float[Tensor, "blocks tried"],
    levels: Float[Tensor, " levels"],
) -> Float64[Tensor, "blocks tried 3"]:
    """The same on a CPU, blocks in parallel."""
    moments = torch.empty((*step.shape, 3), dtype=torch.float64)
    tensors = (values, omega, step, minimum, midpoints(levels), levels.diff())
    _kernel(
        *(tensor.contiguous().numpy() for tensor in tensors),
        float(levels[0]),
        float(levels[-1]),
        moments.numpy(),
    )
    return moments


def level_moments_triton(
    values: Float[Tensor, "blocks size"],
    omega: Float[Tensor, "blocks size"],
    step: Float[Tensor, "blocks tried"],
    minimum: Float[Tensor, "blocks tried"],
    levels: Float[Tensor, " levels"],
) -> Float64[Tensor, "blocks tried 3"]:
    """The same on a GPU: in Triton where it is installed."""
    if not has_triton():
        return level_moments_reference(values, omega, step, minimum, levels)
    from q2n.kernels import triton_searches  # needs triton

    return triton_searches.level_moments(values, omega, step, minimum, levels)


# The sums may be taken in any order, and multiplications joined with additions.
@compiled(parallel=True, fastmath={"reassoc", "contract", "nsz"})
@no_type_check
def _kernel(values, omega, step, minimum, midpoints, gaps, lowest, highest, moments):
    blocks, size = values.shape
    least, most = values.dtype.type(lowest), values.dtype.type(highest)
    for block in numba.prange(blocks):
        x, weight = values[block], omega[block]
        level = np.empty(size, values.dtype)
        for k in range(step.shape[1]):
            a, b = step[block, k], minimum[block, k]
            inverse = 0 * a if a == 0 else 1 / a
            if len(midpoints) == 0:
                for j in range(size):
                    level[j] = min(max(np.rint((x[j] - b) * inverse), least), most)
            else:
                level[:] = least
                for g in range(len(midpoints)):
                    middle, gap = midpoints[g], gaps[g]
                    for j in range(size):
                        level[j] += gap if (x[j] - b) * inverse > middle else 0 * gap
            first, second, mixed = 0.0, 0.0, 0.0
            for j in range(size):
                weighed = np.float64(weight[j]) * np.float64(level[j])
                first += weighed
                second += weighed * np.float64(level[j])
                mixed += weighed * np.float64(x[j])
            moments[block, k, 0] = first
            moments[block, k, 1] = second
            moments[block, k, 2] = mixed
