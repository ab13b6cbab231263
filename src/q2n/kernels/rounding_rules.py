"""Rounding rules: the grid of a layer in the form that the column sweep takes.

A *rule* is a `NamedTuple` of tensors with output rows along the last axis; columns of the layer are
rows in memory. `nearest` rounds to it in plain torch. column_rounding.py goes through the columns.
"""

from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor


@runtime_checkable
class Rule(Protocol):
    """The grid of every weight of a layer: columns as rows, in visiting order."""

    def columns(self, a: int, b: int) -> Self:
        """The rule of the visited columns a:b."""

    def rows(self, a: int, b: int) -> Self:
        """The rule of the rows a:b of the layer."""

    def in_order(self, order: Int[Tensor, " visited"]) -> Self:
        """The rule of a layer in its own order of columns, for those visited in `order`."""

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """Codes (whole numbers of any dtype) of the grid points nearest to `target`, and these
        points."""


class UniformRule(NamedTuple):
    """`scale * (code - zero)`, codes 0..top."""

    scale: Float[Tensor, "groups out"]
    """In the dtype of the weight."""
    zero: UInt8[Tensor, "groups out"]
    group: Int[Tensor, " columns"]
    """Group of each visited column."""
    top: int

    def columns(self, a: int, b: int) -> "UniformRule":
        """The rule of the visited columns a:b."""
        return self._replace(group=self.group[a:b])

    def rows(self, a: int, b: int) -> "UniformRule":
        """As `Rule.rows`."""
        return self._replace(scale=_rows(self.scale, a, b), zero=_rows(self.zero, a, b))

    def in_order(self, order: Int[Tensor, " visited"]) -> "UniformRule":
        """As `Rule.in_order`; the scales and zero points are the same tensors."""
        return self._replace(group=self.group[order])

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """As `Rule.nearest`."""
        scale, zero = self.scale[self.group], self.zero[self.group].to(target.dtype)
        code = (torch.round(target / scale) + zero).clamp_(0, self.top)
        return code, scale * (code - zero)


def midpoints(levels: Float[Tensor, " levels"]) -> Float[Tensor, " gaps"]:
    """Between ascending levels; none if these are 1 apart, where rounding finds the nearest."""
    even = bool((levels.diff() == 1).all())
    return levels[:0] if even else (levels[1:] + levels[:-1]) / 2


class BlockRule(NamedTuple):
    """`minimum + step * level`, levels ascending."""

    step: Float[Tensor, "blocks out"]
    inverse: Float[Tensor, "blocks out"]
    """1 / step; 0 where that is 0."""
    minimum: Float[Tensor, "blocks out"]
    group: Int[Tensor, " columns"]
    """Block of each visited column."""
    levels: Float[Tensor, " levels"]
    midpoints: Float[Tensor, " gaps"]
    """Between the levels; none if these are 1 apart."""

    def columns(self, a: int, b: int) -> "BlockRule":
        """The rule of the visited columns a:b."""
        return self._replace(group=self.group[a:b])

    def rows(self, a: int, b: int) -> "BlockRule":
        """As `Rule.rows`."""
        step, inverse, minimum = (_rows(x, a, b) for x in (self.step, self.inverse, self.minimum))
        return self._replace(step=step, inverse=inverse, minimum=minimum)

    def in_order(self, order: Int[Tensor, " visited"]) -> "BlockRule":
        """As `Rule.in_order`."""
        return self._replace(group=self.group[order])

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """As `Rule.nearest`."""
        minimum, first = self.minimum[self.group], self.levels[0]
        position = (target - minimum) * self.inverse[self.group]
        if len(self.midpoints):
            code = torch.zeros_like(target, dtype=torch.int64)
            for midpoint in self.midpoints:
                code += position > midpoint
        else:
            code = (position.round() - first).clamp(0, len(self.levels) - 1).to(torch.int64)
        return code, minimum + self.step[self.group] * self.levels[code]


class CodebookRule(NamedTuple):
    """The nearest entry of the output row's codebook."""

    entries: Float[Tensor, "entries out"]
    """Ascending, in the dtype of the weight."""

    def columns(self, a: int, b: int) -> "CodebookRule":
        """The rule itself: columns share the codebook."""
        return self

    def rows(self, a: int, b: int) -> "CodebookRule":
        """As `Rule.rows`."""
        return self._replace(entries=_rows(self.entries, a, b))

    def in_order(self, order: Int[Tensor, " visited"]) -> "CodebookRule":
        """The rule itself."""
        return self

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """As `Rule.nearest`."""
        code = torch.zeros_like(target, dtype=torch.int64)
        for lower, upper in zip(self.entries, self.entries[1:], strict=False):
            code += target + target > lower + upper
        return code, self.entries.gather(0, code)


class SplitRule(NamedTuple):
    """One of two uniform grids, `base + step * code`, chosen by a mask."""

    low: Bool[Tensor, "columns out"]
    """Whether a weight is on the low grid."""
    group: Int[Tensor, " columns"]
    """Group of each visited column, for the low grid."""
    low_base: Float[Tensor, "groups out"]
    low_step: Float[Tensor, "groups out"]
    low_top: int
    high_base: Float[Tensor, "1 out"]
    high_step: Float[Tensor, "1 out"]
    high_top: int

    def columns(self, a: int, b: int) -> "SplitRule":
        """The rule of the visited columns a:b."""
        return self._replace(low=self.low[a:b], group=self.group[a:b])

    def rows(self, a: int, b: int) -> "SplitRule":
        """As `Rule.rows`."""
        return self._replace(
            low=_rows(self.low, a, b),
            low_base=_rows(self.low_base, a, b),
            low_step=_rows(self.low_step, a, b),
            high_base=_rows(self.high_base, a, b),
            high_step=_rows(self.high_step, a, b),
        )

    def in_order(self, order: Int[Tensor, " visited"]) -> "SplitRule":
        """As `Rule.in_order`."""
        return self._replace(low=self.low[order], group=self.group[order])

    def nearest(
        self, target: Float[Tensor, "columns out"]
    ) -> tuple[Shaped[Tensor, "columns out"], Float[Tensor, "columns out"]]:
        """As `Rule.nearest`."""
        base = torch.where(self.low, self.low_base[self.group], self.high_base)
        step = torch.where(self.low, self.low_step[self.group], self.high_step)
        top = torch.where(self.low, self.low_top, self.high_top)
        code = torch.round((target - base) / step).clamp_(min=0).minimum(top)
        return code, base + step * code


def _rows(parameters: Shaped[Tensor, "any out"], a: int, b: int) -> Shaped[Tensor, "any rows"]:
    """Those of the rows a:b, as kernels take them."""
    return parameters[:, a:b].contiguous()
