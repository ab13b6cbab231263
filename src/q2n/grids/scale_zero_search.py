r"""The uniform grid whose scale and zero point are both searched (OWQ, Lee et al. 2024).

Letters as in uniform.py. `lo`, `hi` is the min-max range of a group of weights, `s_0` its
min-max scale. Candidates are the scales `s_0 i / n`, i = 1 .. n, each with every zero point
0 .. 2^b - 1 (symmetric: the middle one alone); the pair with the least
`sum |w - quantized|^2.4` is kept. Min-max is among them (i = n), so the result is never worse.

The clip search of uniform.py moves both ends of the range together, 80 candidates; this search
moves them independently, n 2^b candidates (kernels/scale_zero_search.py).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.grids.uniform import UniformGrid, least_scale
from q2n.kernels import dispatch

ROW_STEPS, GROUP_STEPS = 100, 40
"""Number of scales that OWQ tries per row, and per group."""


@dataclass(frozen=True, kw_only=True)
class ScaleZeroGrid(UniformGrid):
    """Uniform grids whose `fit` searches scale and zero point of every group."""

    steps: int = ROW_STEPS
    """n: number of scales that are tried."""

    def fit_groups(
        self, values: Float[Tensor, "*groups size"], dtype: torch.dtype, name: str
    ) -> tuple[Float[Tensor, "*groups"], UInt8[Tensor, "*groups"]]:
        """Scale and zero point of every group of values (the last axis). Raises as `fit`."""
        lo, hi = self.range_of(values)
        widest, _ = self.parameters(lo, hi, dtype, name)
        share = torch.arange(1, self.steps + 1, device=values.device) / self.steps
        step = ((hi - lo) / self.top).unsqueeze(-1)
        scales = (step * share).to(dtype).clamp(min=least_scale(dtype))
        scales[..., -1] = widest
        tried = [self.middle] if self.symmetric else range(2**self.bits)
        zeros = torch.tensor(tried, device=values.device)
        return best_pair(values, scales, step, zeros, self.top)


def best_pair(
    values: Float[Tensor, "*groups size"],
    scales: Float[Tensor, "*groups steps"],
    unit: Float[Tensor, "*groups 1"],
    zeros: Int[Tensor, " zeros"],
    top: int,
) -> tuple[Float[Tensor, "*groups"], UInt8[Tensor, "*groups"]]:
    """The scale and zero point with the least error in each group, for codes 0..top, among the
    group's `scales` (in ascending order) and `zeros`. Values and scales are divided by `unit` for
    the search, so that all groups have numbers of the same magnitude."""
    best, zero = dispatch.scale_zero_search(
        (values / unit).float().flatten(0, -2), (scales / unit).float().flatten(0, -2), zeros, top
    )
    best, zero = best.view(unit.shape), zero.view(unit.shape[:-1])
    return scales.gather(-1, best).squeeze(-1), zero.to(torch.uint8)
