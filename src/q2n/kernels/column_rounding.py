"""How the columns of a block are rounded: one loop over columns, and the grids it can round to.

A *rule* holds the parameters of a grid, an output row in each position of the last axis, and is
a `NamedTuple` of tensors. For numba its type chooses the compiled code (`_round_column`), so that
one kernel serves all grids and stays in numba's cache; all of that is in this file because numba
renews its cache when the file of a kernel changes. Each rule says the same in tensor operations
(`nearest`), for devices that numba does not reach.

The kernel works on tiles: a fixed number of neighbouring output rows of a column at once, by
vector instructions, and tiles in parallel. Once a column is rounded, its error goes into the
later columns of the block (kernels/column_sweep.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, no_type_check, runtime_checkable

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

_TILE = 64


@runtime_checkable
class Rule(Protocol):
    """A grid for every weight of a layer: columns as rows, in visiting order."""

    def columns(self, a: int, b: int) -> Self:
        """The rule of the visited columns a:b."""

    def nearest(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the grid points nearest to `target` [columns, out], and these points."""


class UniformRule(NamedTuple):
    """`scale * (code - zero)`, codes 0..top."""

    scale: Tensor
    """[groups, out], in the dtype of the weight."""
    zero: Tensor
    """[groups, out]"""
    group: Tensor
    """Group of each visited column."""
    top: int

    def columns(self, a: int, b: int) -> "UniformRule":
        return self._replace(group=self.group[a:b])

    def nearest(self, target: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = self.scale[self.group], self.zero[self.group].to(target.dtype)
        code = (torch.round(target / scale) + zero).clamp_(0, self.top)
        return code, scale * (code - zero)


class CodebookRule(NamedTuple):
    """The entries of the row's codebook."""

    entries: Tensor
    """[entries, out], ascending, in the dtype of the weight."""

    def columns(self, a: int, b: int) -> "CodebookRule":
        return self

    def nearest(self, target: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.zeros_like(target, dtype=torch.int64)
        for lower, upper in zip(self.entries, self.entries[1:], strict=False):
            code += target + target > lower + upper
        return code, self.entries.gather(0, code)


class SplitRule(NamedTuple):
    """One of two uniform grids, `base + step * code`, by a mask."""

    low: Tensor
    """[columns, out]: whether a weight is on the low grid."""
    group: Tensor
    """Group of each visited column, for the low grid."""
    low_base: Tensor
    """[groups, out]"""
    low_step: Tensor
    """[groups, out]"""
    low_top: int
    high_base: Tensor
    """[1, out]"""
    high_step: Tensor
    """[1, out]"""
    high_top: int

    def columns(self, a: int, b: int) -> "SplitRule":
        return self._replace(low=self.low[a:b], group=self.group[a:b])

    def nearest(self, target: Tensor) -> tuple[Tensor, Tensor]:
        base = torch.where(self.low, self.low_base[self.group], self.high_base)
        step = torch.where(self.low, self.low_step[self.group], self.high_step)
        top = torch.where(self.low, self.low_top, self.high_top)
        code = torch.round((target - base) / step).clamp_(min=0).minimum(top)
        return code, base + step * code


RoundBlock = Callable[[Tensor, Tensor, Tensor, Any, Tensor, Tensor], None]
"""Round the columns of a block in turn: (target, weight, matrix, rule) are read (target is used
up), (codes, error) are written."""


def round_with_tensors(
    target: Tensor, weight: Tensor, matrix: Tensor, rule: Rule, codes: Tensor, error: Tensor
) -> None:
    """The same arithmetic as the kernel's in tensor operations."""
    for j in range(len(target)):
        code, value = rule.columns(j, j + 1).nearest(target[j : j + 1])
        codes[j] = code[0]
        error[j] = weight[j] - value[0]
        target[j + 1 :] += matrix[j, j + 1 :, None] * error[j]


def round_with_numba(
    target: Tensor, weight: Tensor, matrix: Tensor, rule: Any, codes: Tensor, error: Tensor
) -> None:
    """Tiles of rows in parallel, on a CPU."""
    arrays = (part.numpy() if isinstance(part, Tensor) else part for part in rule)
    _kernel(
        target.numpy(),
        weight.numpy(),
        matrix.contiguous().numpy(),
        type(rule)(*arrays),
        codes.numpy(),
        error.numpy(),
    )


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
@no_type_check
def _kernel(target, weight, matrix, rule, codes, error):
    columns, rows = target.shape
    for tile in numba.prange((rows + _TILE - 1) // _TILE):
        low = tile * _TILE
        high = min(low + _TILE, rows)
        for j in range(columns):
            e = error[j, low:high]
            _round_column(
                rule, j, low, high, target[j, low:high], weight[j, low:high], codes[j, low:high], e
            )
            for k in range(j + 1, columns):
                factor = matrix[j, k]
                later = target[k, low:high]
                for r in range(high - low):
                    later[r] += factor * e[r]


@no_type_check
def _round_column(rule, j, low, high, target, weight, codes, error):
    """Round column j of the rows low:high; one compiled form for each type of rule."""


@overload(_round_column, inline="always")
@no_type_check
def _compiled_round_column(rule, j, low, high, target, weight, codes, error):
    forms = {UniformRule: _round_affine, CodebookRule: _round_codebook, SplitRule: _round_split}
    return forms[rule.instance_class]


@no_type_check
def _round_affine(rule, j, low, high, target, weight, codes, error):
    scale = rule.scale[rule.group[j], low:high]
    zero = rule.zero[rule.group[j], low:high]
    top = target.dtype.type(rule.top)
    for r in range(high - low):
        shift = target.dtype.type(zero[r])
        code = min(max(np.rint(target[r] / scale[r]) + shift, 0 * top), top)
        codes[r] = np.uint8(code)
        error[r] = weight[r] - scale[r] * (code - shift)


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
