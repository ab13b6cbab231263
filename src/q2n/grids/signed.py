r"""The uniform grid of signed codes: `w ~ s q`, q = -2^(b-1) .. 2^(b-1) - 1.

The largest weight of a row lies on the largest code: `s = max|w| / (2^(b-1) - 1)`. (GPTQ's
symmetric grid, uniform.py, divides the range -max|w| .. max|w| in 2^b - 1 steps, so that its code 0
lies half a step inside.) Stored as the same `UniformLinear`, its codes moved up by 2^(b-1).

The clip search is that of uniform.py. The zero point is the same for every range, so that the
compiled search of kernels/scale_zero_search.py does it, in a thirtieth of the time of tensor
operations.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.grids.scale_zero_search import best_pair
from q2n.grids.uniform import UniformGrid, clip_ranges, rounded_scale


@dataclass(frozen=True, kw_only=True)
class SignedGrid(UniformGrid):
    """The largest weight of a group on the largest code; the clip search of `UniformGrid`."""

    symmetric: bool = True

    def fit_groups(
        self, values: Float[Tensor, "*groups size"], dtype: torch.dtype, name: str
    ) -> tuple[Float[Tensor, "*groups"], UInt8[Tensor, "*groups"]]:
        """Scale and zero point of every group of values (the last axis). Raises as `fit`."""
        lo, hi = self.range_of(values)
        widest, zero = self.parameters(lo, hi, dtype, name)
        if self.clip == "minmax":
            return widest, zero
        tried = [self.parameters(p * lo, p * hi, dtype, name)[0] for p in reversed(clip_ranges())]
        middle = torch.tensor([self.middle], device=values.device)
        unit = widest.float().unsqueeze(-1)
        return best_pair(values, torch.stack(tried, -1), unit, middle, self.top)

    def parameters(
        self,
        lo: Float[Tensor, "*groups"],
        hi: Float[Tensor, "*groups"],
        dtype: torch.dtype,
        name: str,
    ) -> tuple[Float[Tensor, "*groups"], UInt8[Tensor, "*groups"]]:
        scale = rounded_scale(hi / (self.middle - 1), dtype, name)
        return scale, torch.full_like(lo, self.middle).to(torch.uint8)
