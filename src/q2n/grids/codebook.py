"""A codebook a row: every weight is one of `2^b` values that belong to its row."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.grids.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookLinear(QuantizedLinear):
    """2^bits free values a row: its codebook, which every code of the row points into."""

    kind: ClassVar[str] = "codebook"

    codes: UInt8[Tensor, "out m"]
    """0 .. 2^bits - 1, a byte each."""
    codebook: Float[Tensor, "out entries"]
    """In the dtype in which it is stored."""
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Float[Tensor, "out m"]:
        return self.codebook.float().gather(1, self.codes.to(torch.int64))

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        scaled = self.codebook.float() * alpha.float().unsqueeze(1)
        return replace(self, codebook=scaled.to(self.codebook.dtype))

    @property
    def stored_bits(self) -> int:
        entries = 8 * self.codebook.element_size() * self.codebook.numel()
        return self.bits * self.codes.numel() + entries

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "codebook": self.codebook}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": self.bits}

    def metadata(self) -> dict[str, int | float | bool | str]:
        return {"bits": self.bits}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        return cls(codes=tensors["codes"], codebook=tensors["codebook"], bits=metadata["bits"])
