r"""Products with packed rows on a GPU, in Triton: uniform grids and trellis codes, up to 8 tokens.

A program makes `ROWS` rows of the weight, `COLUMNS` columns at a time, from their codes in
registers, and multiplies them with all tokens. A code is cut out of two neighbouring words of the
bitstream, so a row may begin anywhere. The state of a trellis code needs the codes of the rows
above: their numbers come in a table, and their words are in the cache since other rows of the
program read them.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from q2n.kernels.packed_trellis import TrellisRows
from q2n.kernels.packed_uniform import UniformRows
from q2n.linalg import trellis_code

_ROWS, _COLUMNS = 16, 64


def uniform_product(
    x: Float[Tensor, "tokens in"], weight: UniformRows
) -> Float[Tensor, "tokens out"]:
    """`x W^T` in float32."""
    out, columns = weight.shape
    result = torch.empty(len(x), out, device=x.device)
    zero = weight.codes if weight.zero is None else weight.zero
    _uniform[(triton.cdiv(out, _ROWS),)](
        *(x.contiguous(), weight.codes, weight.scale, zero, weight.group, result),
        *(out, columns, len(weight.ends), len(weight.codes), len(zero), len(x)),
        BITS=weight.bits,
        SYMMETRIC=weight.zero is None,
        **_sizes(len(x)),
    )
    return result


def trellis_product(
    x: Float[Tensor, "tokens in"], weight: TrellisRows
) -> Float[Tensor, "tokens out"]:
    """`x W^T` in float32."""
    out, columns = weight.shape
    result = torch.empty(len(x), out, device=x.device)
    _trellis[(triton.cdiv(out, _ROWS),)](
        *(x.contiguous(), weight.codes, weight.scale, weight.values, weight.rows_above, result),
        *(out, columns, len(weight.codes), len(x)),
        BITS=weight.bits,
        DIGITS=trellis_code.DIGITS[weight.bits],
        **_sizes(len(x)),
    )
    return result


def _sizes(tokens: int) -> dict[str, int]:
    return {"TOKENS": triton.next_power_of_2(tokens), "ROWS": _ROWS, "COLUMNS": _COLUMNS}


@triton.jit
@no_type_check
def _codes(stream, index, words, mask, BITS: tl.constexpr):
    """The codes with these numbers, out of a stream of 32-bit words."""
    bit = index * BITS
    word, shift = bit // 32, bit % 32
    low = tl.load(stream + word, mask=mask, other=0).to(tl.uint32, bitcast=True)
    more = mask & (word + 1 < words) & (shift + BITS > 32)
    high = tl.load(stream + word + 1, mask=more, other=0).to(tl.uint32, bitcast=True)
    pair = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
    return ((pair >> shift.to(tl.uint64)) & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
@no_type_check
def _add_products(
    total, weight, x, first, columns, tokens, TOKENS: tl.constexpr, COLUMNS: tl.constexpr
):
    column, token = first + tl.arange(0, COLUMNS), tl.arange(0, TOKENS)
    mask = (token[None, :] < tokens) & (column[:, None] < columns)
    part = tl.load(x + token[None, :] * columns + column[:, None], mask=mask, other=0)
    return total + tl.sum(weight[:, :, None] * part.to(tl.float32)[None, :, :], 1)


@triton.jit
@no_type_check
def _store(result, total, row, out, tokens, TOKENS: tl.constexpr):
    token = tl.arange(0, TOKENS)
    mask = (row[:, None] < out) & (token[None, :] < tokens)
    tl.store(result + token[None, :] * out + row[:, None], total, mask=mask)


@triton.jit
@no_type_check
def _uniform(
    x,
    codes,
    scale,
    zero,
    group,
    result,
    out,
    columns,
    groups,
    words,
    zero_words,
    tokens,
    BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row[:, None] < out) & (column[None, :] < columns)
        index = row[:, None].to(tl.int64) * columns + column[None, :]
        code = _codes(codes, index, words, mask, BITS)
        of = row[:, None].to(tl.int64) * groups
        of += tl.load(group + column, mask=column < columns, other=0)[None, :]
        if SYMMETRIC:
            steps = code - (1 << (BITS - 1))
        else:
            steps = code - _codes(zero, of, zero_words, mask, BITS)
        factor = tl.load(scale + of, mask=mask, other=0).to(tl.float32)
        weight = steps.to(tl.float32) * factor
        total = _add_products(total, weight, x, first, columns, tokens, TOKENS, COLUMNS)
    _store(result, total, row, out, tokens, TOKENS)


@triton.jit
@no_type_check
def _trellis(
    x,
    codes,
    scale,
    values,
    above,
    result,
    out,
    columns,
    words,
    tokens,
    BITS: tl.constexpr,
    DIGITS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row[:, None] < out) & (column[None, :] < columns)
        state = tl.zeros((ROWS, COLUMNS), tl.int32)
        for place in tl.static_range(DIGITS):
            source = tl.load(above + place * out + row, mask=row < out, other=0)
            index = source[:, None].to(tl.int64) * columns + column[None, :]
            state += _codes(codes, index, words, mask, BITS) << (BITS * (DIGITS - 1 - place))
        weight = tl.load(values + state, mask=mask, other=0)
        total = _add_products(total, weight, x, first, columns, tokens, TOKENS, COLUMNS)
    factor = tl.load(scale + row, mask=row < out, other=0)
    _store(result, total * factor[:, None], row, out, tokens, TOKENS)
