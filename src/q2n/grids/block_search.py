r"""Steps and minima of blocks of weights with the least weighted error.

A block of weights x with importance omega is rounded to `a l + b`, l one of given levels
(block_types.py). For fixed levels the error is a quadratic form in a and b, whose coefficients are
moments (kernels/level_moments.py), so that the best pair is

    without b:  a = xl / ll
    with b:     a = (xl 1 - x l) / (ll 1 - l^2),   b = (x - a l) / 1

(each letter a sum with omega). Rounding and this solution are taken in turn, as in k-means: from
several starts, which are ranges of the block shrunk by different amounts, with either sign of the
step where levels are not symmetric; then from the neighbours of the best pair. The pair with the
least error is kept. llama.cpp's `make_qx_quants` and `make_qkx3_quants` search in the same way,
with fewer starts and no neighbours.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from q2n.kernels import dispatch

_SHARES = tuple(1.08 * 0.95**step for step in range(25))
"""Starts without a minimum: the outermost level over the widest weight."""
_CUTS = tuple(product((-0.15, -0.05, 0.05, 0.15, 0.3, 0.5, 0.75), repeat=2))
"""Starts with a minimum: how much of either half of the range is cut off."""
_MOVES = (0.03, 0.01)
"""Of the step in each turn after the starts, relatively, to either side."""
_SHIFTS = (0.4, 0.15)
"""Of the minimum, in steps."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Weights with their importance, cut into blocks."""

    values: Float[Tensor, "blocks size"]
    omega: Float[Tensor, "blocks size"]
    levels: Float[Tensor, " levels"]
    """Ascending."""

    @cached_property
    def sums(self) -> Float64[Tensor, "3 blocks 1"]:
        """Of omega, omega x, omega x^2."""
        omega, x = self.omega.double(), self.values.double()
        weighed = omega * x
        return torch.stack([omega.sum(1), weighed.sum(1), (weighed * x).sum(1)]).unsqueeze(-1)

    def moments(
        self, step: Float[Tensor, "blocks tried"], minimum: Float[Tensor, "blocks tried"]
    ) -> Float64[Tensor, "3 blocks tried"]:
        """Of omega l, omega l^2, omega x l, with the levels nearest for each pair."""
        moments = dispatch.level_moments(self.values, self.omega, step, minimum, self.levels)
        return moments.movedim(-1, 0)

    def error(
        self,
        moments: Float64[Tensor, "3 blocks tried"],
        step: Float[Tensor, "blocks tried"],
        minimum: Float[Tensor, "blocks tried"],
    ) -> Float64[Tensor, "blocks tried"]:
        """Of the levels that have these moments, for any step and minimum."""
        one, x, xx = self.sums
        l, ll, xl = moments  # noqa: E741 - the letter of the formula
        a, b = step.double(), minimum.double()
        return xx - 2 * (a * xl + b * x) + a * a * ll + 2 * a * b * l + b * b * one


def least_error(
    blocks: Blocks, *, has_minimum: bool, below_zero: bool
) -> tuple[Float[Tensor, " blocks"], Float[Tensor, " blocks"]]:
    """Step and minimum of every block; minima are 0 without `has_minimum`, and with `below_zero`
    not above 0."""
    starts = _ranges(blocks, below_zero) if has_minimum else _steps(blocks)
    step, minimum, error = _best(blocks, *starts, has_minimum, below_zero)
    for move, shift in zip(_MOVES, _SHIFTS, strict=True):
        near = _around(step, minimum, move, shift if has_minimum else 0.0)
        again = _best(blocks, *near, has_minimum, below_zero)
        better = again[2] < error
        step, minimum, error = (
            torch.where(better, new, old)
            for new, old in zip(again, (step, minimum, error), strict=True)
        )
    return step, minimum


def _steps(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Steps to start from, where the levels lie on both sides of 0."""
    widest, levels = blocks.values.abs().amax(1, keepdim=True), blocks.levels
    signs = (1,) if -levels[0] == levels[-1] else (1, -1)
    shares = torch.tensor([sign * share for sign in signs for share in _SHARES])
    step = widest / levels.abs().max() * shares.to(widest)
    return step, torch.zeros_like(step)


def _ranges(blocks: Blocks, below_zero: bool) -> tuple[Tensor, Tensor]:
    """Steps and minima to start from."""
    low, high = blocks.values.amin(1, keepdim=True), blocks.values.amax(1, keepdim=True)
    if below_zero:
        low = low.clamp(max=0)
    cut = torch.tensor(_CUTS, dtype=low.dtype, device=low.device).T
    # Towards the middle of the range, where both ends meet.
    middle, half = (low + high) / 2, (high - low) / 2
    minimum = middle - half * (1 - cut[0])
    step = (middle + half * (1 - cut[1]) - minimum) / blocks.levels[-1]
    return step, minimum


def _around(
    step: Float[Tensor, " blocks"], minimum: Float[Tensor, " blocks"], move: float, shift: float
) -> tuple[Float[Tensor, "blocks tried"], Float[Tensor, "blocks tried"]]:
    """Pairs in the neighbourhood of one, itself among them."""
    shifts = (-shift, 0, shift) if shift else (0,)
    moves = torch.tensor(list(product((-move, 0, move), shifts))).to(step).T
    step = step.unsqueeze(1) * (1 + moves[0])
    return step, minimum.unsqueeze(1) + step * moves[1]


def _best(
    blocks: Blocks,
    step: Float[Tensor, "blocks tried"],
    minimum: Float[Tensor, "blocks tried"],
    has_minimum: bool,
    below_zero: bool,
) -> tuple[Float[Tensor, " blocks"], Float[Tensor, " blocks"], Float64[Tensor, " blocks"]]:
    """The best pair for the levels of any of the pairs tried, and its error."""
    moments = blocks.moments(step, minimum)
    step, minimum = _solved(blocks, moments, has_minimum, below_zero)
    error, tried = blocks.error(moments, step, minimum).min(1, keepdim=True)
    step, minimum = (x.gather(1, tried).squeeze(1) for x in (step, minimum))
    dtype = blocks.values.dtype
    return step.to(dtype), minimum.to(dtype), error.squeeze(1)


def _solved(
    blocks: Blocks, moments: Float64[Tensor, "3 blocks tried"], has_minimum: bool, below_zero: bool
) -> tuple[Float64[Tensor, "blocks tried"], Float64[Tensor, "blocks tried"]]:
    """The pair with the least error for given levels; a step of 0 where all of them are 0."""
    one, x, _ = blocks.sums
    l, ll, xl = moments  # noqa: E741 - the letter of the formula
    alone = torch.where(ll > 0, xl / ll, 0)
    if not has_minimum:
        return alone, torch.zeros_like(alone)
    determinant = ll * one - l * l
    spread = determinant > 1e-9 * ll * one  # else all levels are the same one
    step = torch.where(spread, (xl * one - x * l) / determinant, 0)
    minimum = torch.where(one > 0, (x - step * l) / one, 0)
    if below_zero:
        step, minimum = torch.where(minimum > 0, alone, step), minimum.clamp(max=0)
    return step, minimum
