r"""Rounding columns to a trellis code on a GPU, in Triton: the search of trellis_search.py.

A program has one circular segment of rows and takes it through all columns of the block. The costs
of all states are in registers, [P, B]: the least of each row is what the next P shared parts of a
state start from. Which of the B it was lies in global memory, a byte per row and shared part, for
the way back. Segments have at most 160 rows, so a layer has few programs, and each waits for its
own last step: the time of a layer is that of one segment, whatever its rows, until there are more
segments than processors.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.kernels.triton_math import EXACT
from q2n.linalg import trellis_code

_LATER = 16
"""Columns to which an error is fed at a time."""
_WARPS = 16
"""Of a program: each thread has 8 of the 4096 costs. The rows wait for each other."""


def round_to_trellis(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    values: Float[Tensor, " states"],
    bits: int,
    overlap: int,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """As `column_rounding.round_columns_reference` for a `TrellisRule` of these values and bits."""
    columns, rows = target.shape
    target = target.clone(memory_format=torch.contiguous_format)
    codes, error = torch.empty_like(target, dtype=torch.uint8), torch.empty_like(target)
    ends = trellis_code.borders(rows)
    segments, longest = len(ends) - 1, max(b - a for a, b in zip(ends, ends[1:], strict=False))
    shared = len(values) >> bits
    which = torch.empty(segments, longest, shared, dtype=torch.uint8, device=target.device)
    _kernel[(segments,)](
        *(target, weight.contiguous(), matrix.contiguous(), values.contiguous()),
        *(which, codes, error, columns, rows, segments, longest, overlap),
        BASE=2**bits,
        SHARED=shared,
        ROWS=triton.next_power_of_2(longest),
        LATER=_LATER,
        num_warps=_WARPS,
        **EXACT,
    )
    return codes, error


@triton.jit
@no_type_check
def _kernel(
    target,
    weight,
    matrix,
    values,
    which,
    codes,
    error,
    columns,
    rows,
    segments,
    longest,
    overlap,
    BASE: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    LATER: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    low, high = segment * rows // segments, (segment + 1) * rows // segments
    size = (high - low).to(tl.int32)
    overlap = tl.minimum(overlap, size)
    which += segment * longest * SHARED
    part = tl.arange(0, SHARED)[:, None] + tl.zeros((SHARED, BASE), tl.int32)
    for j in range(columns):
        line, place = target + j * rows + low, j * rows + low
        cost = tl.zeros((SHARED, BASE), target.dtype.element_ty)
        cost = _forward(line + size - overlap, values, which, overlap, cost, BASE, SHARED)
        cost = _forward(line, values, which, size, cost, BASE, SHARED)
        best, nearest = tl.min(cost, 1, return_indices=True)
        # axis by axis: Triton takes a tensor that is reshaped to one axis and reduced in any order,
        # also where its place in the order is asked for
        end = tl.argmin(best, 0)
        to = (codes + place, error + place)
        start = _back(to, values, which, size, end, nearest, False, BASE, SHARED)
        begun = _back(to, values, which, size, start, nearest, True, BASE, SHARED)
        if begun != start:
            tl.debug_barrier()  # all have read what is overwritten next
            cost = tl.where(part == start, 0, float("inf")).to(target.dtype.element_ty)
            cost = _forward(line, values, which, size, cost, BASE, SHARED)
            best, nearest = tl.min(cost, 1, return_indices=True)
            _back(to, values, which, size, start, nearest, True, BASE, SHARED)
        tl.debug_barrier()
        _feed(
            line,
            weight + place,
            error + place,
            matrix + j * columns,
            j,
            columns,
            rows,
            size,
            ROWS,
            LATER,
        )


@triton.jit
@no_type_check
def _forward(line, values, which, count, cost, BASE: tl.constexpr, SHARED: tl.constexpr):
    """The costs after `count` rows from `line` on."""
    part = tl.arange(0, SHARED)
    value = tl.load(values + tl.arange(0, BASE)[:, None] * SHARED + part[None, :])
    for t in range(count):
        best, nearest = tl.min(cost, 1, return_indices=True)
        tl.store(which + t * SHARED + part, nearest.to(tl.uint8))
        away = tl.load(line + t) - value
        cost = tl.reshape(best[None, :] + away * away, (SHARED, BASE))
    tl.debug_barrier()  # what other threads have stored is read next
    return cost


@triton.jit
@no_type_check
def _back(
    to,
    values,
    which,
    size,
    end,
    nearest,
    STORE: tl.constexpr,
    BASE: tl.constexpr,
    SHARED: tl.constexpr,
):
    """The start of the nearest sequence with the d - 1 codes `end` at its end. Its codes and values
    are stored if asked for."""
    codes, error = to
    part = tl.arange(0, SHARED)
    state = end * BASE + tl.sum(tl.where(part == end, nearest, 0), 0)
    for back in range(size):
        t = size - 1 - back
        if STORE:
            tl.store(codes + t, (state // SHARED).to(tl.uint8))
            tl.store(error + t, tl.load(values + state))
        end = state % SHARED
        state = end * BASE + tl.load(which + t * SHARED + end).to(tl.int32)
    return end


@triton.jit
@no_type_check
def _feed(
    line, weight, error, factor, j, columns, rows, size, ROWS: tl.constexpr, LATER: tl.constexpr
):
    """Make the rounded values of column j its error, and add it to the later columns."""
    row = tl.arange(0, ROWS)
    inside = row < size
    e = tl.load(weight + row, mask=inside, other=0) - tl.load(error + row, mask=inside, other=0)
    tl.debug_barrier()
    tl.store(error + row, e, mask=inside)
    for first in range(j + 1, columns, LATER):
        k = first + tl.arange(0, LATER)
        place = line + (k - j)[:, None] * rows + row[None, :]
        mask = (k < columns)[:, None] & inside[None, :]
        scaled = tl.load(factor + k, mask=k < columns, other=0)[:, None] * e[None, :]
        tl.store(place, tl.load(place, mask=mask, other=0) + scaled, mask=mask)
    tl.debug_barrier()
