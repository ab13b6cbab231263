"""Rounding the columns of a block in turn.

The grid comes as a *rule* (rounding_rules.py). Rounding a block goes column by column: round column
j to `q_j`, then feed its error into the later columns,

    e_j = w_j - q_j,     target_k += M_jk e_j   (k > j).

Everything is transposed: a column of the layer is a row in memory.

The numba kernel serves the rules whose weights are rounded one by one. It takes tiles: a fixed
number of neighbouring output rows, which go through all columns of the block in vector
instructions; tiles run in parallel. The type of the rule chooses the compiled code of one column
(`_round_column`), so that a single kernel serves all these rules.
"""

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba.extending import overload
from torch import Tensor

from q2n.kernels.compiled import compiled
from q2n.kernels.optional import has_triton
from q2n.kernels.rounding_rules import BlockRule, CodebookRule, Rule, SplitRule, UniformRule

_TILE = 64


def round_columns_reference(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: Rule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """Codes of the columns of a block, and their errors `weight - rounded`.

    `target` holds the values to round before any feedback within the block, `matrix` the feedback M
    of these columns (its upper triangle is read). Serves every rule, on any device."""
    target = target.clone()
    codes, error = torch.empty_like(target, dtype=torch.uint8), torch.empty_like(target)
    for j in range(len(target)):
        code, value = rule.columns(j, j + 1).nearest(target[j : j + 1])
        codes[j] = code[0]
        error[j] = weight[j] - value[0]
        target[j + 1 :] += matrix[j, j + 1 :, None] * error[j]
    return codes, error


def round_columns_numba(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: UniformRule | BlockRule | CodebookRule | SplitRule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """The same on a CPU, tiles of output rows in parallel."""
    target = target.contiguous()
    codes, error = torch.empty_like(target, dtype=torch.uint8), torch.empty_like(target)
    _kernel(
        target.numpy(),
        weight.contiguous().numpy(),
        matrix.contiguous().numpy(),
        _with_arrays(rule),
        codes.numpy(),
        error.numpy(),
    )
    return codes, error


def round_columns_triton(
    target: Float[Tensor, "columns out"],
    weight: Float[Tensor, "columns out"],
    matrix: Float[Tensor, "columns columns"],
    rule: UniformRule | BlockRule | CodebookRule | SplitRule,
) -> tuple[UInt8[Tensor, "columns out"], Float[Tensor, "columns out"]]:
    """The same on a GPU: in Triton where it is installed."""
    if not has_triton():
        return round_columns_reference(target, weight, matrix, rule)
    from q2n.kernels import triton_columns  # needs triton

    return triton_columns.round_columns(target, weight, matrix, rule)


def _with_arrays(rule: Any) -> Any:
    """The rule with numpy arrays for its tensors."""
    parts = (part.contiguous().numpy() if isinstance(part, Tensor) else part for part in rule)
    return type(rule)(*parts)


@compiled(parallel=True)
@no_type_check
def _kernel(target, weight, matrix, rule, codes, error):
    """Fill `codes` and `error`."""
    columns, rows = target.shape
    for tile in numba.prange((rows + _TILE - 1) // _TILE):
        low = tile * _TILE
        high = min(low + _TILE, rows)
        updated = target[:, low:high].copy()  # the tile alone: smaller, and the argument stays
        for j in range(columns):
            e = error[j, low:high]
            _round_column(
                rule, j, low, high, updated[j], weight[j, low:high], codes[j, low:high], e
            )
            for k in range(j + 1, columns):
                factor = matrix[j, k]
                later = updated[k]
                for r in range(high - low):
                    later[r] += factor * e[r]


@no_type_check
def _round_column(rule, j, low, high, target, weight, codes, error):
    """Round column j of the rows low:high; one compiled form for each type of rule."""


@overload(_round_column, inline="always")
@no_type_check
def _compiled_round_column(rule, j, low, high, target, weight, codes, error):
    forms = {
        UniformRule: _round_uniform,
        BlockRule: _round_block,
        CodebookRule: _round_codebook,
        SplitRule: _round_split,
    }
    return forms[rule.instance_class]


@no_type_check
def _round_uniform(rule, j, low, high, target, weight, codes, error):
    scale = rule.scale[rule.group[j], low:high]
    zero = rule.zero[rule.group[j], low:high]
    top = target.dtype.type(rule.top)
    for r in range(high - low):
        shift = target.dtype.type(zero[r])
        code = min(max(np.rint(target[r] / scale[r]) + shift, 0 * top), top)
        codes[r] = np.uint8(code)
        error[r] = weight[r] - scale[r] * (code - shift)


@no_type_check
def _round_block(rule, j, low, high, target, weight, codes, error):
    block = rule.group[j]
    step, inverse = rule.step[block, low:high], rule.inverse[block, low:high]
    minimum, first = rule.minimum[block, low:high], rule.levels[0]
    if len(rule.midpoints) == 0:
        top = target.dtype.type(len(rule.levels) - 1)
        for r in range(high - low):
            position = (target[r] - minimum[r]) * inverse[r]
            code = min(max(np.rint(position) - first, 0 * top), top)
            codes[r] = np.uint8(code)
            error[r] = weight[r] - (minimum[r] + step[r] * (code + first))
        return
    for r in range(high - low):
        codes[r] = 0
        error[r] = first
    for k in range(len(rule.midpoints)):
        midpoint, level = rule.midpoints[k], rule.levels[k + 1]
        for r in range(high - low):
            above = (target[r] - minimum[r]) * inverse[r] > midpoint
            codes[r] = np.uint8(k + 1) if above else codes[r]
            error[r] = level if above else error[r]
    for r in range(high - low):
        error[r] = weight[r] - (minimum[r] + step[r] * error[r])


@no_type_check
def _round_codebook(rule, j, low, high, target, weight, codes, error):
    entry = rule.entries[0, low:high]
    for r in range(high - low):
        codes[r] = 0
        error[r] = weight[r] - entry[r]
    for k in range(1, len(rule.entries)):
        lower, upper = rule.entries[k - 1, low:high], rule.entries[k, low:high]
        for r in range(high - low):
            above = target[r] + target[r] > lower[r] + upper[r]
            codes[r] = np.uint8(k) if above else codes[r]
            error[r] = weight[r] - upper[r] if above else error[r]


@no_type_check
def _round_split(rule, j, low, high, target, weight, codes, error):
    is_low = rule.low[j, low:high]
    low_base = rule.low_base[rule.group[j], low:high]
    low_step = rule.low_step[rule.group[j], low:high]
    high_base, high_step = rule.high_base[0, low:high], rule.high_step[0, low:high]
    low_top, high_top = target.dtype.type(rule.low_top), target.dtype.type(rule.high_top)
    for r in range(high - low):
        base = low_base[r] if is_low[r] else high_base[r]
        step = low_step[r] if is_low[r] else high_step[r]
        top = low_top if is_low[r] else high_top
        code = min(max(np.rint((target[r] - base) / step), 0 * top), top)
        codes[r] = np.uint8(code)
        error[r] = weight[r] - (base + step * code)
