r"""The uniform grid of signed codes: `w ~ s q`, q = -2^(b-1) .. 2^(b-1) - 1.

The largest weight of a row lies on the largest code: `s = max|w| / (2^(b-1) - 1)`. (GPTQ's
symmetric grid, affine.py, divides the range -max|w| .. max|w| in 2^b - 1 steps, so that its code 0
lies half a step inside.) Stored as the same `AffineLinear`, its codes moved up by 2^(b-1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.grids.affine import AffineGrid, unusable_scale


@dataclass(frozen=True, kw_only=True)
class SignedGrid(AffineGrid):
    """The largest weight of a group on the largest code; the clip search of `AffineGrid`."""

    symmetric: bool = True

    def parameters(
        self, lo: Tensor, hi: Tensor, dtype: torch.dtype, name: str
    ) -> tuple[Tensor, Tensor]:
        middle = 2 ** (self.bits - 1)
        exact = hi / (middle - 1)
        scale = exact.to(dtype).clamp(min=torch.finfo(dtype).tiny)
        if not torch.isfinite(scale).all():
            raise unusable_scale(exact, dtype, name)
        return scale, torch.full_like(lo, middle).to(torch.uint8)
