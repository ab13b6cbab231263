r"""Steps of steps: d, m, s, t of super-blocks with the least weighted error.

In a super-block the step of block b is `d s_b` and its minimum `-m t_b`, with whole numbers s, t of
a few bits and d, m in float16 (block_types.py). Given the best step and minimum of every block
(block_search.py):

1. d is the largest step over the largest s, m likewise; s and t the nearest to step / d;
2. in every block, s and t become those of their neighbours with the least error, the weights
   rounded anew for each;
3. with s, t and all levels fixed, the error is a quadratic form in d and m:

       E = xx - 2 (d sum s xl - m sum t x) + d^2 sum s^2 ll - 2 d m sum s t l + m^2 sum t^2 1

   (sums over blocks of a block's moments, kernels/level_moments.py); d and m solve it.

2 and 3 are taken in turn, and the best of all turns is kept.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from q2n.block_types import BlockType
from q2n.grids.block_search import Blocks

_TURNS = 3
_NEIGHBOURS = (-1, 0, 1)


class _Scales(NamedTuple):
    """d, m per super-block and s, t, without s_0, per block."""

    d: Float[Tensor, "supers 1"]
    m: Float[Tensor, "supers 1"]
    s: Float[Tensor, "supers per"]
    t: Float[Tensor, "supers per"]

    def pairs(self) -> tuple[Float[Tensor, "blocks 1"], Float[Tensor, "blocks 1"]]:
        """Step and minimum of every block."""
        return (self.d * self.s).view(-1, 1), (-self.m * self.t).view(-1, 1)


def two_levels(
    kind: BlockType,
    blocks: Blocks,
    step: Float[Tensor, " blocks"],
    minimum: Float[Tensor, " blocks"],
) -> dict[str, Tensor]:
    """d, s and, if the type has them, m and t, as they are stored."""
    per = kind.super_block // kind.block
    d, s = _nearest(step.view(-1, per), kind)
    m, t = _nearest(-minimum.view(-1, per), kind)
    best, error = _turn(kind, blocks, _Scales(d, m, s, t))
    for _ in range(_TURNS - 1):
        again, other = _turn(kind, blocks, best)
        better = other < error
        pairs = zip(again, best, strict=True)
        best = _Scales(*(torch.where(better, new, old) for new, old in pairs))
        error = torch.where(better, other, error)
    stored = {"d": best.d.half(), "s": (best.s + kind.scale_offset).to(torch.uint8)}
    if kind.has_minimum:
        stored |= {"m": best.m.half(), "t": best.t.to(torch.uint8)}
    return stored


def _nearest(
    values: Float[Tensor, "supers per"], kind: BlockType
) -> tuple[Float[Tensor, "supers 1"], Float[Tensor, "supers per"]]:
    """A unit and whole multiples of it: the largest value on the end of their range."""
    low, high = _range(kind)
    widest = values.gather(1, values.abs().argmax(1, keepdim=True))
    unit = (widest / (low or high)).half().float()
    multiples = torch.where(unit == 0, 0, (values / unit).round()).clamp(low, high)
    return unit, multiples


def _range(kind: BlockType) -> tuple[int, int]:
    """The least and the largest s - s_0."""
    assert kind.scale_bits is not None
    return -kind.scale_offset, 2**kind.scale_bits - 1 - kind.scale_offset


def _turn(
    kind: BlockType, blocks: Blocks, scales: _Scales
) -> tuple[_Scales, Float64[Tensor, "supers 1"]]:
    """Better s and t for d and m, then better d and m for these; and the error that they leave."""
    s, t, moments = _neighbours(kind, blocks, scales)
    d, m = (x.half().float() for x in _solved(blocks, moments, s, t))
    found = _Scales(d, m, s, t)
    error = blocks.error(moments.unsqueeze(-1), *found.pairs()).view_as(s)
    return found, error.sum(1, keepdim=True)


def _neighbours(
    kind: BlockType, blocks: Blocks, scales: _Scales
) -> tuple[Float[Tensor, "supers per"], Float[Tensor, "supers per"], Float64[Tensor, "3 blocks"]]:
    """The best s and t of every block, and the moments of its levels with them."""
    moves = torch.tensor(
        list(product(_NEIGHBOURS, _NEIGHBOURS if kind.has_minimum else (0,))),
        dtype=scales.s.dtype,
        device=scales.s.device,
    ).T
    tried_s, tried_t = (
        (x.unsqueeze(-1) + move).clamp(*_range(kind))
        for x, move in zip((scales.s, scales.t), moves, strict=True)
    )
    step = (scales.d.unsqueeze(-1) * tried_s).flatten(0, 1)
    minimum = (-scales.m.unsqueeze(-1) * tried_t).flatten(0, 1)
    moments = blocks.moments(step, minimum)
    best = blocks.error(moments, step, minimum).argmin(1, keepdim=True)
    s, t = (x.flatten(0, 1).gather(1, best).view_as(scales.s) for x in (tried_s, tried_t))
    return s, t, moments.gather(2, best.expand(3, -1, 1)).squeeze(-1)


def _solved(
    blocks: Blocks,
    moments: Float64[Tensor, "3 blocks"],
    s: Float[Tensor, "supers per"],
    t: Float[Tensor, "supers per"],
) -> tuple[Float64[Tensor, "supers 1"], Float64[Tensor, "supers 1"]]:
    """The d and m with the least error for given levels, s and t; neither sign of m changes."""
    l, ll, xl = (x.view_as(s) for x in moments)  # noqa: E741 - the letter of the formula
    one, x, _ = (total.view_as(s) for total in blocks.sums)
    s, t = s.double(), t.double()
    first, mixed, second = (
        total.sum(1, keepdim=True) for total in (s * s * ll, s * t * l, t * t * one)
    )
    p, q = ((factor * y).sum(1, keepdim=True) for factor, y in ((s, xl), (t, x)))
    determinant = first * second - mixed * mixed
    alone = torch.where(first > 0, p / first, 0)
    m = torch.where(determinant > 1e-9 * first * second, (mixed * p - first * q) / determinant, 0)
    d = torch.where(m > 0, (p * second - mixed * q) / determinant, alone)
    return d, m.clamp(min=0)
