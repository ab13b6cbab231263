"""The uniform grid whose range has the least weighted error (LeanQuant's affine grid).

Both ends of a group's range are shrunk, each by its own factor, and the pair with the least
`sum_j omega_j (w_j - q_j)^2` is kept (kernels/weighted_error.py). LeanQuant (Zhang and Shrivastava
2024) tries every pair of a fine grid of factors. Here 36 pairs of a coarse grid are tried, then
three times the neighbours of the best pair so far, each time at half the distance. The first pair
is the whole range, so min-max is never better.
"""

import itertools

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.grids.uniform import UniformGrid
from q2n.kernels import dispatch
from q2n.linalg.groups import in_groups

_ROUNDS = (
    tuple(itertools.product((0, -0.15, -0.3, -0.45, -0.6, -0.75), repeat=2)),
    *(tuple(itertools.product((-d, 0, d), repeat=2)) for d in (0.075, 0.0375, 0.01875)),
)
"""Offsets of both factors, which start at 1; each round starts from the best pair so far."""
_ENTRIES_AT_ONCE = 2**20
"""Rows are fitted in portions of about this many entries, which bounds memory."""


def fit_weighted(
    grid: UniformGrid,
    weight: Float[Tensor, "out in"],
    importance: Float[Tensor, " in"],
    dtype: torch.dtype,
    name: str,
) -> tuple[Float[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
    """As `UniformGrid.fit`, with this search in place of `grid.clip`. `importance` is omega of
    every column. Raises as `UniformGrid.fit`; groups must divide the columns."""
    size = grid.granularity.group_size(weight.shape[1], name)
    omega = importance.view(-1, size)
    portion = max(1, _ENTRIES_AT_ONCE // weight.shape[1])
    fitted = [
        _fit_portion(grid, in_groups(part, size), omega, dtype, name)
        for part in weight.split(portion)
    ]
    return torch.cat([s for s, _ in fitted]), torch.cat([z for _, z in fitted])


def _fit_portion(
    grid: UniformGrid,
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    dtype: torch.dtype,
    name: str,
) -> tuple[Float[Tensor, "rows groups"], UInt8[Tensor, "rows groups"]]:
    lo, hi = grid.range_of(values)

    def tried(low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        scale, zero = grid.parameters(low * lo, high * hi, dtype, name)
        return _error(grid, values, omega, scale, zero), low, high, scale, zero

    best = tried(torch.ones_like(lo), torch.ones_like(hi))
    for offsets in _ROUNDS:
        _, low, high, _, _ = best
        for i, k in offsets:
            new = tried(low + i, high + k)
            better = new[0] < best[0]
            best = tuple(torch.where(better, n, old) for n, old in zip(new, best, strict=True))
    return best[3], best[4]


def _error(
    grid: UniformGrid,
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    scale: Float[Tensor, "rows groups"],
    zero: UInt8[Tensor, "rows groups"],
) -> Float[Tensor, "rows groups"]:
    scale, zero = scale.to(values.dtype), zero.to(values.dtype)
    return dispatch.weighted_error(values, omega, scale, zero, grid.top)
