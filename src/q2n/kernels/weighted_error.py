r"""Weighted squared error of a uniform grid, for every group of weights.

With a group's scale `s` and zero point `z`, and weights of importance `omega`:

    error = sum_j omega_j (q_j - w_j)^2,     q_j = s clamp(round(w_j / s), -z, top - z).

A search over ranges (grids/weighted_range.py) evaluates this for tens of candidates, so it never
forms codes. The numba kernel multiplies by `1 / s`, and adds a group's terms in any order: its
error differs from the reference by rounding, and where `w_j / s` lies half-way between two points.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from q2n.kernels.compiled import compiled
from q2n.kernels.optional import has_triton


def weighted_error_reference(
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    scale: Float[Tensor, "rows groups"],
    zero: Float[Tensor, "rows groups"],
    top: int,
) -> Float[Tensor, "rows groups"]:
    """Error of every group, for codes 0..top; `zero` holds whole numbers in the dtype of
    `values`. On any device."""
    step, shift = scale.unsqueeze(-1), zero.unsqueeze(-1)
    code = (values / step).round_().clamp_(-shift, top - shift)
    return code.mul_(step).sub_(values).square_().mul_(omega).sum(-1)


def weighted_error_numba(
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    scale: Float[Tensor, "rows groups"],
    zero: Float[Tensor, "rows groups"],
    top: int,
) -> Float[Tensor, "rows groups"]:
    """The same on a CPU, rows in parallel."""
    error = torch.empty_like(scale, memory_format=torch.contiguous_format)
    tensors = (values, omega, scale, zero)
    _kernel(*(tensor.contiguous().numpy() for tensor in tensors), top, error.numpy())
    return error


def weighted_error_triton(
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    scale: Float[Tensor, "rows groups"],
    zero: Float[Tensor, "rows groups"],
    top: int,
) -> Float[Tensor, "rows groups"]:
    """The same on a GPU: in Triton where it is installed."""
    if not has_triton():
        return weighted_error_reference(values, omega, scale, zero, top)
    from q2n.kernels import triton_searches  # needs triton

    return triton_searches.weighted_error(values, omega, scale, zero, top)


# The sum over a group may be taken in any order, and multiplications joined with additions.
@compiled(parallel=True, fastmath={"reassoc", "contract", "nsz"})
@no_type_check
def _kernel(values, omega, scale, zero, top, error):
    rows, groups, size = values.shape
    for i in numba.prange(rows):
        for g in range(groups):
            step, least = scale[i, g], -zero[i, g]
            inverse, most = 1 / step, top + least
            total = 0 * step
            for j in range(size):
                value = values[i, g, j]
                off = min(max(np.rint(value * inverse), least), most) * step - value
                total += omega[g, j] * off * off
            error[i, g] = total
