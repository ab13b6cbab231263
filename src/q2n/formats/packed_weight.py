"""What a packed layer multiplies with: kernels around its packed rows.

For up to `FEW` tokens a kernel goes over the packed rows (kernels/packed_rows.py). For more, panels
of rows are dequantized and multiplied one after the other, so that of a large weight only a panel
is ever there. The random basis of a layer is packed_rotation.py's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from q2n.kernels import dispatch
from q2n.kernels.packed_rows import PackedRows

FEW = 8
"""Tokens up to which a row that is made for them alone costs less than a panel."""
_PANEL = 2**19
"""Weights of a panel: 1 MB in 16 bits."""


class PackedWeight(ABC):
    """A weight of shape (out, in)."""

    @abstractmethod
    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """`x W^T + b` in the dtype of x. `bias` is in float32."""

    def columns_products(
        self, blocks: Sequence[Float[Tensor, "in _"]]
    ) -> list[Float[Tensor, "out _"]]:
        """`W x` for each block x of tokens, in its dtype; contiguous."""
        return [self.product(x.T, None).T.contiguous() for x in blocks]


@dataclass(frozen=True, eq=False)
class InRows(PackedWeight):
    """Rows that a kernel can make."""

    rows: PackedRows

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`. Without tokens no row is made: of a mixture most experts have
        none while a text is generated."""
        if len(x) == 0:
            return x.new_empty(0, self.rows.shape[0])
        if len(x) <= FEW:
            return dispatch.packed_product(x, self.rows, bias)
        bias = None if bias is None else bias.to(x.dtype)
        parts = [
            functional.linear(x, self._panel(x, piece), None if bias is None else bias[piece])
            for piece in self._pieces()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def columns_products(
        self, blocks: Sequence[Float[Tensor, "in _"]]
    ) -> list[Float[Tensor, "out _"]]:
        """As `PackedWeight.columns_products`."""
        results = [x.new_empty(self.rows.shape[0], x.shape[1]) for x in blocks]
        for piece in self._pieces():
            panel = self._panel(blocks[0], piece)
            for x, result in zip(blocks, results, strict=True):
                torch.mm(panel, x, out=result[piece])
        return results

    def _pieces(self) -> list[slice]:
        """The rows of each panel, of nearly equal height."""
        out, columns = self.rows.shape
        count = -(-out // max(1, _PANEL // columns))
        return [slice(i * out // count, (i + 1) * out // count) for i in range(count)]

    def _panel(self, x: Float[Tensor, "_ _"], piece: slice) -> Float[Tensor, "rows in"]:
        return dispatch.packed_rows(x, self.rows, piece.start, piece.stop)


@dataclass(frozen=True, eq=False)
class WithColumns(PackedWeight):
    """Some columns in 16 bits beside a packed weight of the others."""

    others: PackedWeight
    kept: Int[Tensor, " kept"]
    columns: Int[Tensor, " k"]
    values: Float[Tensor, "out k"]

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`; both parts are added up in float32 for few tokens."""
        few = x.float() if len(x) <= FEW else x
        result = self.others.product(few.index_select(1, self.kept), bias)
        weak = few.index_select(1, self.columns)
        return result.addmm(weak, self.values.to(weak.dtype).T).to(x.dtype)


@dataclass(frozen=True, eq=False)
class TwoKindsOfColumns(PackedWeight):
    """Columns with a factor each, and others, each kind packed by itself."""

    low: PackedWeight
    low_columns: Int[Tensor, " low"]
    factor: Float[Tensor, " low"]
    """In float32; it multiplies the input."""
    high: PackedWeight
    high_columns: Int[Tensor, " high"]

    def product(
        self, x: Float[Tensor, "tokens in"], bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "tokens out"]:
        """As `PackedWeight.product`; both parts are added up in float32 for few tokens."""
        few = x.float() if len(x) <= FEW else x
        low = few.index_select(1, self.low_columns) * self.factor.to(few.dtype)
        result = self.low.product(low, bias)
        return result.add_(self.high.product(few.index_select(1, self.high_columns), None)).to(
            x.dtype
        )
