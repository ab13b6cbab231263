r"""A uniform grid with a few whole columns beside it in 16 bits.

The weak columns, those where rounding would cost most, are stored as they are; the others
lie on the grid of affine.py, `s (c - z)`. Groups of columns are those of the layer, weak
columns included, so that a group's scale belongs to neighbouring columns of the layer.

In memory a weak column has the code of 0 on the grid, and its values are put in its place.
In storage it has no code at all. `b` bits, k weak columns of m: `b (m - k) + 16 k` bits a row,
then scales, zero points and k indices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from q2n.layers.quantized import QuantizedLinear
from q2n.layers.uniform import UniformLinear
from q2n.linalg.groups import group_of_column


@dataclass(frozen=True, kw_only=True, eq=False)
class OutlierLinear(QuantizedLinear):
    """Uniform grid, except for some columns in 16 bits."""

    kind: ClassVar[str] = "outliers"

    grid: UniformLinear
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
        dtype of the scales, or to float16 if that is wider."""
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

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid.shape

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

    def trainable(self, *, rounding: bool) -> "TrainableOutliers":
        return TrainableOutliers(self, rounding=rounding)

    @property
    def stored_bits(self) -> int:
        without_codes = self.grid.stored_bits - self.grid.bits * self.values.numel()
        columns = 8 * self.columns.element_size() * self.columns.numel()
        return without_codes + 8 * self.values.element_size() * self.values.numel() + columns

    def tensors(self) -> dict[str, Tensor]:
        codes = self.grid.codes[:, self._on_grid(self.shape[1])].contiguous()
        outliers = {"columns": self.columns, "values": self.values}
        return {**self.grid.tensors(), "codes": codes, **outliers}

    @property
    def widths(self) -> Mapping[str, int]:
        return self.grid.widths

    def metadata(self) -> dict[str, int | float | bool | str]:
        return self.grid.metadata()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        stored, columns, values = (tensors[name] for name in ("codes", "columns", "values"))
        codes = stored.new_zeros(len(stored), stored.shape[1] + len(columns))
        bare = UniformLinear.from_tensors({**tensors, "codes": codes}, metadata)
        layer = cls.of(bare, columns.long(), values)
        layer.grid.codes[:, layer._on_grid(codes.shape[1])] = stored
        return layer

    def to(self, device: torch.device) -> Self:
        columns, values = self.columns.to(device), self.values.to(device)
        return replace(self, grid=self.grid.to(device), columns=columns, values=values)

    def _on_grid(self, columns: int) -> Bool[Tensor, " in"]:
        kept = torch.ones(columns, dtype=torch.bool, device=self.columns.device)
        return kept.index_fill_(0, self.columns.long(), False)


class TrainableOutliers:
    """The trainable form of an `OutlierLinear`: that of its grid, the weak columns fixed."""

    def __init__(self, layer: OutlierLinear, *, rounding: bool):
        self.layer = layer
        self.grid = layer.grid.trainable(rounding=rounding)

    @property
    def scale_change(self) -> Tensor:
        return self.grid.scale_change

    @property
    def code_change(self) -> Tensor | None:
        return self.grid.code_change

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        values = self.layer.values.to(dtype)
        return self.grid.weight(dtype).index_copy(1, self.layer.fixed_columns, values)

    def quantized(self) -> OutlierLinear:
        """The layer with the tuned scales and codes."""
        return replace(self.layer, grid=self.grid.quantized())
