r"""The uniform grid whose range is learned on a block's output (OmniQuant, Shao et al. 2024).

Letters as in uniform.py. `lo`, `hi` is the min-max range of a group of weights. Each end has a
logit, l and u, which starts at 4:

    lo' = sigmoid(l) lo,  hi' = sigmoid(u) hi,  s = (hi' - lo') / (2^b - 1),  z = round(-lo' / s)

The logits of all layers of a block are fitted together by gradient steps on what the block gives
(refit/ranges.py); gradients pass the rounding of codes, not that of z. What is learned are shares
of the range: they fit any weight near the one that they were learned on, so that a method with
error feedback, or one on corrected weights, can round on such a grid too.

The range contains 0, as everywhere in grids/: zero points are codes. OmniQuant's does not where all
weights of a group have one sign. It also clamps scales to 1e-5 .. 1e4; here they are rounded to
the dtype in which they are stored.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from q2n.grids.uniform import UniformGrid
from q2n.layers.autograd import rounded_in_range
from q2n.linalg.groups import in_groups, whole_and_ragged

_START = 4.0
"""Of a logit: 98 % of the range."""


class Clipping(NamedTuple):
    """The shares of a layer's ranges that are kept, 0 .. 1."""

    low: Float[Tensor, "out groups"]
    """Of the end below 0."""
    high: Float[Tensor, "out groups"]
    """Of the end above 0."""


@dataclass(frozen=True, kw_only=True)
class RangeFit:
    """How the ranges are learned, block by block, before anything is rounded."""

    grid: UniformGrid
    epochs: int
    """Each with a gradient step for every calibration window."""
    rate: float
    """Of Adam, on the logits."""
    both_targets: bool
    """Whether the block's output is brought near two targets: what the full-precision model has
    there, and what the full-precision block makes of the quantized prefix's output."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedGrid(UniformGrid):
    """Uniform grids whose ranges are given shares of min-max."""

    clipping: Clipping

    def fit(
        self, weight: Float[Tensor, "out in"], dtype: torch.dtype, name: str
    ) -> tuple[Float[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
        """Scales and zero points. Raises as `UniformGrid.fit`."""
        lo, hi = ranges(self, weight, name)
        return self.parameters(self.clipping.low * lo, self.clipping.high * hi, dtype, name)


def clipped(grid: UniformGrid, clipping: Clipping) -> ClippedGrid:
    """The grid of one layer whose clipping was learned on `grid`."""
    return ClippedGrid(
        bits=grid.bits,
        symmetric=grid.symmetric,
        granularity=grid.granularity,
        clipping=clipping,
    )


def ranges(
    grid: UniformGrid, weight: Float[Tensor, "out in"], name: str
) -> tuple[Float[Tensor, "out groups"], Float[Tensor, "out groups"]]:
    """Min-max ranges, `lo` and `hi` of every group. Raises as `UniformGrid.fit`."""
    size = grid.granularity.group_size(weight.shape[1], name)
    found = [grid.range_of(part) for part in whole_and_ragged(weight, size)]
    return torch.cat([lo for lo, _ in found], 1), torch.cat([hi for _, hi in found], 1)


class LearnedRange(nn.Module):
    """A weight that is rounded in a range with two parameters per group."""

    def __init__(
        self, grid: UniformGrid, weight: Float[Tensor, "out in"], dtype: torch.dtype, name: str
    ):
        """Args: as of `UniformGrid.fit`, which raises the same."""
        super().__init__()
        self.grid, self.dtype, self.name = grid, dtype, name
        self._columns = weight.shape[1]
        self._groups = in_groups(weight, grid.granularity.group_size(self._columns, name))
        self._lo, self._hi = ranges(grid, weight, name)
        self.low_logit = nn.Parameter(torch.full_like(self._lo, _START))
        self.high_logit = nn.Parameter(torch.full_like(self._hi, _START))

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The rounded weight, differentiable in the logits."""
        low, high = self.clipping()
        lo, hi = low * self._lo, high * self._hi
        exact = (hi - lo) / self.grid.top
        with torch.no_grad():
            stored, zero = self.grid.parameters(lo, hi, self.dtype, self.name)
            rounding = stored.float() - exact
        dense = rounded_in_range(self._groups, exact + rounding, zero.float(), self.grid.top, dtype)
        return dense.flatten(1)[:, : self._columns]

    def clipping(self) -> Clipping:
        """The shares that the logits stand for."""
        return Clipping(self.low_logit.sigmoid(), self.high_logit.sigmoid())

    @torch.no_grad()
    def start_again(self) -> None:
        """Put the logits back to where they began."""
        self.low_logit.fill_(_START)
        self.high_logit.fill_(_START)
