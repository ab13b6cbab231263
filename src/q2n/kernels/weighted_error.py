"""Weighted error of a uniform grid, group by group."""

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float
from torch import Tensor


def error_with_tensors(
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    scale: Float[Tensor, "rows groups"],
    zero: Float[Tensor, "rows groups"],
    top: int,
) -> Float[Tensor, "rows groups"]:
    """Weighted error of every group, for a device that numba does not reach."""
    step, shift = scale.unsqueeze(-1), zero.unsqueeze(-1)
    code = (values / step).round_().clamp_(-shift, top - shift)
    return code.mul_(step).sub_(values).square_().mul_(omega).sum(-1)


@numba.njit(
    parallel=True,
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz"},  # the sum over a group may take any order
)
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
