r"""Rounding the columns of a block in turn on a GPU, in Triton: the loop of column_rounding.py.

A program has `ROWS` neighbouring output rows and keeps their targets of all columns of the block in
registers, a tile [columns, rows]. Column j is taken out of the tile by a sum over a mask (exact:
all other terms are 0), rounded, and its error times row j of the feedback is added to the tile. So
targets are read once and written never; what is read per column, the weight, the grid and M's row,
depends on no result, and the order of the sums is the reference's: codes and errors are equal.

One warp has a program, so that the sum over columns stays within it. A wider block than `COLUMNS`
goes in parts, as blocks do in the sweep.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.kernels.rounding_rules import BlockRule, CodebookRule, SplitRule, UniformRule
from q2n.kernels.triton_math import EXACT, divided, nearest_integer

_COLUMNS, _ROWS = 128, 32


def round_columns(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: UniformRule | BlockRule | CodebookRule | SplitRule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """As `column_rounding.round_columns_reference`."""
    codes = torch.empty(target.shape, dtype=torch.uint8, device=target.device)
    error = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    for a in range(0, len(target), _COLUMNS):
        b = min(a + _COLUMNS, len(target))
        part = target[a:b]
        if a:
            part = torch.addmm(part, matrix[:a, a:b].T, error[:a])
        given = (part, weight[a:b], matrix[a:b, a:b])
        _launch(given, rule.columns(a, b), (codes[a:b], error[a:b]))
    return codes, error


def _launch(given: Sequence[Tensor], rule: tuple[Any, ...], results: Sequence[Tensor]) -> None:
    """Round one part of a block: `given` are target, weight and matrix, `results` take codes and
    errors."""
    columns, rows = given[0].shape
    kernel, arguments = _of_rule(rule)
    kernel[(triton.cdiv(rows, _ROWS),)](
        *(x.contiguous() for x in given),
        *(*results, columns, rows),
        *(x.contiguous() if isinstance(x, Tensor) else x for x in arguments),
        COLUMNS=max(16, triton.next_power_of_2(columns)),
        ROWS=_ROWS,
        num_warps=1,
        **EXACT,
    )


def _of_rule(rule: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The kernel for a type of rule, and its arguments."""
    match rule:
        case UniformRule():
            return _uniform, (rule.group, rule.scale, rule.zero, rule.top)
        case BlockRule():
            grid = (rule.group, rule.step, rule.inverse, rule.minimum, rule.levels)
            # even levels need no midpoints, and an empty tensor has no address
            borders = rule.midpoints if len(rule.midpoints) else rule.levels
            return _block, (*grid, borders, len(rule.levels), not len(rule.midpoints))
        case CodebookRule():
            return _codebook, (rule.entries, len(rule.entries))
        case SplitRule():
            low = (rule.low.view(torch.uint8), rule.group, rule.low_base, rule.low_step)
            high = (rule.high_base, rule.high_step)
            return _split, (*low, *high, rule.low_top, rule.high_top)
    raise AssertionError(f"no kernel for {type(rule).__name__}")


@triton.jit
@no_type_check
def _rows_of_program(rows, ROWS: tl.constexpr):
    """Its output rows, and which of them there are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return row, row < rows


@triton.jit
@no_type_check
def _tile(target, columns, rows, row, inside, COLUMNS: tl.constexpr):
    k = tl.arange(0, COLUMNS)[:, None]
    mask = (k < columns) & inside[None, :]
    return tl.load(target + k * rows + row[None, :], mask=mask, other=0)


@triton.jit
@no_type_check
def _column(tile, j, COLUMNS: tl.constexpr):
    k = tl.arange(0, COLUMNS)[:, None]
    return tl.sum(tl.where(k == j, tile, 0), 0)


@triton.jit
@no_type_check
def _finish(tile, code, value, j, block, COLUMNS: tl.constexpr):
    """Store column j, and feed its error into the later columns."""
    weight, matrix, codes, error, columns, rows, row, inside = block
    e = tl.load(weight + j * rows + row, mask=inside, other=0) - value
    tl.store(codes + j * rows + row, code.to(tl.int32).to(tl.uint8), mask=inside)
    tl.store(error + j * rows + row, e, mask=inside)
    k = tl.arange(0, COLUMNS)
    factor = tl.load(matrix + j * columns + k, mask=(k > j) & (k < columns), other=0)
    return tile + factor[:, None] * e[None, :]


@triton.jit
@no_type_check
def _uniform(
    target,
    weight,
    matrix,
    codes,
    error,
    columns,
    rows,
    group,
    scale,
    zero,
    top,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, inside = _rows_of_program(rows, ROWS)
    tile = _tile(target, columns, rows, row, inside, COLUMNS)
    block = (weight, matrix, codes, error, columns, rows, row, inside)
    for j in range(columns):
        x = _column(tile, j, COLUMNS)
        place = tl.load(group + j) * rows + row
        step = tl.load(scale + place, mask=inside, other=1)
        shift = tl.load(zero + place, mask=inside, other=0).to(x.dtype)
        level = nearest_integer(divided(x, step), -shift, top - shift)
        tile = _finish(tile, level + shift, step * level, j, block, COLUMNS)


@triton.jit
@no_type_check
def _block(
    target,
    weight,
    matrix,
    codes,
    error,
    columns,
    rows,
    group,
    step,
    inverse,
    minimum,
    levels,
    midpoints,
    count,
    EVEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, inside = _rows_of_program(rows, ROWS)
    tile = _tile(target, columns, rows, row, inside, COLUMNS)
    block = (weight, matrix, codes, error, columns, rows, row, inside)
    first = tl.load(levels)
    for j in range(columns):
        place = tl.load(group + j) * rows + row
        least = tl.load(minimum + place, mask=inside, other=0)
        position = (_column(tile, j, COLUMNS) - least) * tl.load(
            inverse + place, mask=inside, other=0
        )
        if EVEN:
            code = (nearest_integer(position, first, first + (count - 1)) - first).to(tl.int32)
        else:
            code = tl.zeros((ROWS,), tl.int32)
            for gap in range(count - 1):
                code += (position > tl.load(midpoints + gap)).to(tl.int32)
        value = least + tl.load(step + place, mask=inside, other=0) * tl.load(levels + code)
        tile = _finish(tile, code, value, j, block, COLUMNS)


@triton.jit
@no_type_check
def _codebook(
    target,
    weight,
    matrix,
    codes,
    error,
    columns,
    rows,
    entries,
    count,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, inside = _rows_of_program(rows, ROWS)
    tile = _tile(target, columns, rows, row, inside, COLUMNS)
    block = (weight, matrix, codes, error, columns, rows, row, inside)
    for j in range(columns):
        x = _column(tile, j, COLUMNS)
        code = tl.zeros((ROWS,), tl.int32)
        lower = tl.load(entries + row, mask=inside, other=0)
        for k in range(1, count):
            upper = tl.load(entries + k * rows + row, mask=inside, other=0)
            code += (x + x > lower + upper).to(tl.int32)
            lower = upper
        value = tl.load(entries + code * rows + row, mask=inside, other=0)
        tile = _finish(tile, code, value, j, block, COLUMNS)


@triton.jit
@no_type_check
def _split(
    target,
    weight,
    matrix,
    codes,
    error,
    columns,
    rows,
    low,
    group,
    low_base,
    low_step,
    high_base,
    high_step,
    low_top,
    high_top,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, inside = _rows_of_program(rows, ROWS)
    tile = _tile(target, columns, rows, row, inside, COLUMNS)
    block = (weight, matrix, codes, error, columns, rows, row, inside)
    base_above = tl.load(high_base + row, mask=inside, other=0)
    step_above = tl.load(high_step + row, mask=inside, other=1)
    for j in range(columns):
        x = _column(tile, j, COLUMNS)
        is_low = tl.load(low + j * rows + row, mask=inside, other=0) != 0
        place = tl.load(group + j) * rows + row
        base = tl.where(is_low, tl.load(low_base + place, mask=inside, other=0), base_above)
        step = tl.where(is_low, tl.load(low_step + place, mask=inside, other=1), step_above)
        top = tl.where(is_low, low_top, high_top).to(x.dtype)
        code = nearest_integer(divided(x - base, step), 0, top)
        tile = _finish(tile, code, base + step * code, j, block, COLUMNS)
