"""A codebook per row: every weight is one of `2^b` values that belong to its row."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import codebook_entries, zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookLinear(QuantizedLinear):
    """Codebook per row: 2^bits free values, and a code per weight that points to one of them."""

    kind: ClassVar[str] = "codebook"

    codes: UInt8[Tensor, "out in"] = packed("bits")
    """0 .. 2^bits - 1, a byte each."""
    codebook: Float[Tensor, "out entries"]
    """In the dtype in which it is stored."""
    bits: CodeBits

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.codebook.float().gather(1, self.codes.to(torch.int64))

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return sizes["entries"] == 2 ** metadata["bits"]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        scaled = self.codebook.float() * alpha.float().unsqueeze(1)
        return replace(self, codebook=scaled.to(self.codebook.dtype))

    def part(self, rows: slice, columns: slice) -> Self:
        return replace(self, codes=self.codes[rows, columns], codebook=self.codebook[rows])

    def trainable(self, *, rounding: bool) -> "TrainableCodebook":
        return TrainableCodebook(self)


class TrainableCodebook(nn.Module):
    """The trainable form of a `CodebookLinear`: its entries.

    The change of an entry is relative to the root mean square of its row's codebook, so that an
    entry near 0 can move too. Entries have no even steps that codes could move by: codes stay.
    """

    code_change = None

    def __init__(self, layer: CodebookLinear):
        super().__init__()
        self.layer = layer
        self.scale_change = zero_change(layer.codebook)
        self._unit = layer.codebook.float().square().mean(1, keepdim=True).sqrt()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        return codebook_entries(self._codebook(), self.layer.codes, dtype)

    @torch.no_grad()
    def quantized(self) -> CodebookLinear:
        """The layer with the tuned codebook."""
        return replace(self.layer, codebook=self._codebook().to(self.layer.codebook.dtype))

    def _codebook(self) -> Float[Tensor, "out entries"]:
        return self.layer.codebook.float() + self.scale_change * self._unit
