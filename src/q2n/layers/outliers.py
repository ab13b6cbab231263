r"""A uniform grid, and beside it a few whole columns in 16 bits.

The weak columns, those that rounding would harm most, are stored as they are; the others lie on
the grid of layers/uniform.py, `s (c - z)`. Groups of columns are those of the layer, weak columns
included, so that the columns of a group are neighbours in the layer.

In memory a weak column has the code of 0 on the grid, and its values are put in its place. In
storage it has no code at all. With b bits and k weak columns of m, a row stores
`b (m - k) + 16 k` bits, its scales and its zero points; the layer, k column indices.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from q2n.layers.fields import nested
from q2n.layers.quantized import QuantizedLinear
from q2n.layers.uniform import UniformLinear
from q2n.linalg.groups import group_of_column


@dataclass(frozen=True, kw_only=True, eq=False)
class OutlierLinear(QuantizedLinear):
    """Uniform grid, except for some columns in 16 bits."""

    kind: ClassVar[str] = "outliers"

    grid: UniformLinear = nested(UniformLinear, prefix="")
    """All columns; the weak ones are 0."""
    columns: Int[Tensor, " k"]
    """The weak columns, ascending, int32."""
    values: Float[Tensor, "out k"]
    """Their weights, in a dtype of 16 bits."""

    @classmethod
    def of(
        cls, grid: UniformLinear, columns: Int[Tensor, " k"], values: Float[Tensor, "out k"]
    ) -> Self:
        """The layer with `values` in place of some columns of `grid`. They are rounded to the
        dtype of the scales, or to float16 if that dtype has more than 16 bits."""
        dtype = grid.scale.dtype if grid.scale.dtype.itemsize == 2 else torch.float16
        ascending = columns.argsort()
        columns = columns[ascending]
        group = group_of_column(grid.shape[1], grid.group_size, columns.device)
        codes = grid.codes.index_copy(1, columns, grid.zero[:, group[columns]])
        return cls(
            grid=replace(grid, codes=codes),
            columns=columns.to(torch.int32),
            values=values[:, ascending].to(dtype),
        )

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.grid.dequantize().index_copy_(1, self.columns.long(), self.values.float())

    @property
    def fixed_columns(self) -> Int[Tensor, " k"]:
        return self.columns.long()

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return replace(self, grid=self.grid.scale_rows(alpha))

    @property
    def scale_group(self) -> int:
        return self.grid.scale_group

    def scale_groups(self, alpha: Float[Tensor, "out _"]) -> Self:
        return replace(self, grid=self.grid.scale_groups(alpha))

    def part(self, rows: slice, columns: slice) -> Self:
        inside = (self.columns >= columns.start) & (self.columns < columns.stop)
        return replace(
            self,
            grid=self.grid.part(rows, columns),
            columns=self.columns[inside] - columns.start,
            values=self.values[rows, inside],
        )

    def trainable(self, *, rounding: bool) -> "TrainableOutliers":
        return TrainableOutliers(self, rounding=rounding)

    def tensors(self) -> dict[str, Shaped[Tensor, "..."]]:
        codes = self.grid.codes[:, _others(self.columns, self.shape[1])].contiguous()
        return {**super().tensors(), "codes": codes}

    @classmethod
    def stored_dims(cls, metadata: Mapping[str, Any]) -> Mapping[str, str | None]:
        return {"codes": "out kept"}

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return sizes["kept"] + sizes["k"] == sizes["in"]

    @classmethod
    def wrong_values(
        cls, shape: tuple[int, int], part: Callable[[str], Shaped[Tensor, "..."]]
    ) -> str | None:
        columns = part("columns").long()
        rising = bool((columns.diff() > 0).all())
        inside = not len(columns) or 0 <= int(columns[0]) and int(columns[-1]) < shape[1]
        return None if rising and inside else "columns are not different columns in rising order"

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Shaped[Tensor, "..."]], metadata: Mapping[str, Any]
    ) -> Self:
        stored, columns = tensors["codes"], tensors["columns"]
        codes = stored.new_zeros(len(stored), stored.shape[1] + len(columns))
        codes[:, _others(columns, codes.shape[1])] = stored
        layer = super().from_tensors({**tensors, "codes": codes}, metadata)
        return cls.of(layer.grid, columns.long(), layer.values)


def _others(columns: Int[Tensor, " k"], width: int) -> Bool[Tensor, " in"]:
    """Which of `width` columns are not among `columns`."""
    others = torch.ones(width, dtype=torch.bool, device=columns.device)
    return others.index_fill_(0, columns.long(), False)


class TrainableOutliers:
    """The trainable form of an `OutlierLinear`: that of its grid; the weak columns are fixed."""

    def __init__(self, layer: OutlierLinear, *, rounding: bool):
        self.layer, self.grid = layer, layer.grid.trainable(rounding=rounding)
        self.scale_change, self.code_change = self.grid.scale_change, self.grid.code_change

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        values = self.layer.values.to(dtype)
        return self.grid.weight(dtype).index_copy(1, self.layer.fixed_columns, values)

    def quantized(self) -> OutlierLinear:
        """The layer with the tuned scales and codes."""
        return replace(self.layer, grid=self.grid.quantized())
