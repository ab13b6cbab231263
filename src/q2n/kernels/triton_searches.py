r"""What searches for grids evaluate, on a GPU, in Triton: one pass over the weights for all
candidates, where plain torch makes several passes for each.

Kernels of scale_zero_search.py, weighted_error.py and level_moments.py, whose references define the
results. Sums are taken in another order. A power `|d|^2.4` is `2^(1.2 log2 d^2)`, the processor's
own logarithm and exponential; that of 0 is 0.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64, Int
from torch import Tensor

from q2n.kernels.rounding_rules import midpoints
from q2n.kernels.triton_math import divided, nearest_integer

_ROWS, _SIZE = 16, 128


def scale_zero_search(
    values: Float[Tensor, "rows size"],
    scales: Float[Tensor, "rows steps"],
    zeros: Int[Tensor, " zeros"],
    top: int,
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """As `scale_zero_search_reference`, in float32."""
    rows, size = values.shape
    best, zero = torch.zeros(2, rows, dtype=torch.int64, device=values.device)
    _scale_zero[(triton.cdiv(rows, _ROWS),)](
        *(values.float().contiguous(), scales.float().contiguous(), zeros.contiguous()),
        *(best, zero, rows, size, scales.shape[1], len(zeros), top),
        **_sizes(size),
    )
    return best, zero


def weighted_error(
    values: Float[Tensor, "rows groups size"],
    omega: Float[Tensor, "groups size"],
    scale: Float[Tensor, "rows groups"],
    zero: Float[Tensor, "rows groups"],
    top: int,
) -> Float[Tensor, "rows groups"]:
    """As `weighted_error_reference`."""
    rows, groups, size = values.shape
    error = torch.empty(rows, groups, dtype=values.dtype, device=values.device)
    tensors = (x.contiguous() for x in (values, omega, scale, zero))
    _weighted_error[(triton.cdiv(rows, _ROWS), groups)](
        *tensors, error, rows, groups, size, top, **_sizes(size)
    )
    return error


def level_moments(
    values: Float[Tensor, "blocks size"],
    omega: Float[Tensor, "blocks size"],
    step: Float[Tensor, "blocks tried"],
    minimum: Float[Tensor, "blocks tried"],
    levels: Float[Tensor, " levels"],
) -> Float64[Tensor, "blocks tried 3"]:
    """As `level_moments_reference`."""
    (blocks, size), tried = values.shape, step.shape[1]
    moments = torch.empty(blocks, tried, 3, dtype=torch.float64, device=values.device)
    between = midpoints(levels)
    gaps = between if len(between) else levels  # an empty tensor has no address
    tensors = (x.contiguous() for x in (values, omega, step, minimum, levels, gaps))
    _moments[(triton.cdiv(blocks, _ROWS),)](
        *(*tensors, moments, blocks, size, tried, len(levels), not len(between)), **_sizes(size)
    )
    return moments


def _sizes(size: int) -> dict[str, int]:
    """Rows of a program, and weights of each at a time."""
    return {"ROWS": _ROWS, "SIZE": min(_SIZE, triton.next_power_of_2(size))}


@triton.jit
@no_type_check
def _part(values, row, rows, first, size, SIZE: tl.constexpr):
    """A tile of the rows, and which of it there is."""
    column = first + tl.arange(0, SIZE)
    mask = (row < rows)[:, None] & (column < size)[None, :]
    place = values + row.to(tl.int64)[:, None] * size + column[None, :]
    return tl.load(place, mask=mask, other=0)


@triton.jit
@no_type_check
def _scale_zero(
    values,
    scales,
    zeros,
    best,
    zero,
    rows,
    size,
    steps,
    count,
    top,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    least = tl.full((ROWS,), float("inf"), tl.float32)
    best_step, best_zero = tl.zeros((ROWS,), tl.int64), tl.zeros((ROWS,), tl.int64)
    for back in range(steps):
        i = steps - 1 - back
        scale = tl.load(scales + row.to(tl.int64) * steps + i, mask=inside, other=1)
        inverse = 1 / scale
        for n in range(count):
            z = tl.load(zeros + n)
            low, high = -z.to(tl.float32), (top - z).to(tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            for first in range(0, size, SIZE):
                w = _part(values, row, rows, first, size, SIZE)
                away = w - scale[:, None] * nearest_integer(w * inverse[:, None], low, high)
                # weights that are not there are 0; where no code means 0, they must not count
                there = first + tl.arange(0, SIZE) < size
                power = tl.exp2(1.2 * tl.log2(away * away))
                total += tl.sum(tl.where(there[None, :], power, 0), 1)
            better = total < least
            least = tl.where(better, total, least)
            best_step = tl.where(better, i, best_step)
            best_zero = tl.where(better, z, best_zero)
    tl.store(best + row, best_step, mask=inside)
    tl.store(zero + row, best_zero, mask=inside)


@triton.jit
@no_type_check
def _weighted_error(
    values,
    omega,
    scale,
    zero,
    error,
    rows,
    groups,
    size,
    top,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row, group = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    inside = row < rows
    place = row.to(tl.int64) * groups + group
    step = tl.load(scale + place, mask=inside, other=1)[:, None]
    shift = tl.load(zero + place, mask=inside, other=0)[:, None]
    total = tl.zeros((ROWS,), values.dtype.element_ty)
    for first in range(0, size, SIZE):
        column = first + tl.arange(0, SIZE)
        there = inside[:, None] & (column < size)[None, :]
        w = tl.load(values + place[:, None] * size + column[None, :], mask=there, other=0)
        weight = tl.load(omega + group * size + column, mask=column < size, other=0)
        off = nearest_integer(divided(w, step), -shift, top - shift) * step - w
        total += tl.sum(off * off * weight[None, :], 1)
    tl.store(error + place, total, mask=inside)


@triton.jit
@no_type_check
def _moments(
    values,
    omega,
    step,
    minimum,
    levels,
    midpoints,
    moments,
    blocks,
    size,
    tried,
    count,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < blocks
    lowest = tl.load(levels)
    for k in range(tried):
        place = row.to(tl.int64) * tried + k
        a = tl.load(step + place, mask=inside, other=0)
        b = tl.load(minimum + place, mask=inside, other=0)
        inverse = tl.where(a == 0, 0, 1 / a)
        once, twice = tl.zeros((ROWS,), tl.float64), tl.zeros((ROWS,), tl.float64)
        mixed = tl.zeros((ROWS,), tl.float64)
        for first in range(0, size, SIZE):
            x = _part(values, row, blocks, first, size, SIZE)
            weight = _part(omega, row, blocks, first, size, SIZE).to(tl.float64)
            position = (x - b[:, None]) * inverse[:, None]
            if EVEN:
                level = nearest_integer(position, lowest, lowest + (count - 1))
            else:
                code = tl.zeros((ROWS, SIZE), tl.int32)
                for gap in range(count - 1):
                    code += (position > tl.load(midpoints + gap)).to(tl.int32)
                level = tl.load(levels + code)
            weighed = weight * level.to(tl.float64)
            once += tl.sum(weighed, 1)
            twice += tl.sum(weighed * level.to(tl.float64), 1)
            mixed += tl.sum(weighed * x.to(tl.float64), 1)
        tl.store(moments + place * 3, once, mask=inside)
        tl.store(moments + place * 3 + 1, twice, mask=inside)
        tl.store(moments + place * 3 + 2, mixed, mask=inside)
