"""A codebook a row: every weight is one of `2^b` values that belong to its row."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from q2n.layers.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookLinear(QuantizedLinear):
    """2^bits free values a row: its codebook, which every code of the row points into."""

    kind: ClassVar[str] = "codebook"

    codes: UInt8[Tensor, "out in"]
    """0 .. 2^bits - 1, a byte each."""
    codebook: Float[Tensor, "out entries"]
    """In the dtype in which it is stored."""
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.codebook.float().gather(1, self.codes.to(torch.int64))

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        scaled = self.codebook.float() * alpha.float().unsqueeze(1)
        return replace(self, codebook=scaled.to(self.codebook.dtype))

    def trainable(self, *, rounding: bool) -> "TrainableCodebook":
        return TrainableCodebook(self)

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


class TrainableCodebook(nn.Module):
    """The trainable form of a `CodebookLinear`: every entry by itself, in units of its row's root
    mean square entry (an entry near 0 is to move as well). Codes have no neighbours: they stay."""

    code_change = None

    def __init__(self, layer: CodebookLinear):
        super().__init__()
        self.layer = layer
        self.scale_change = nn.Parameter(torch.zeros_like(layer.codebook, dtype=torch.float32))
        self._unit = layer.codebook.float().square().mean(1, keepdim=True).sqrt()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        return lookup(self._codebook(), self.layer.codes, dtype)

    @torch.no_grad()
    def quantized(self) -> CodebookLinear:
        """The layer with the tuned codebook."""
        return replace(self.layer, codebook=self._codebook().to(self.layer.codebook.dtype))

    def _codebook(self) -> Float[Tensor, "out entries"]:
        return self.layer.codebook.float() + self.scale_change * self._unit


def lookup(
    codebook: Float[Tensor, "out entries"], codes: UInt8[Tensor, "out in"], dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """Each row's entries by code, differentiable in the entries."""
    return _Lookup.apply(codebook, codes, dtype)


class _Lookup(torch.autograd.Function):
    """Entries by code; keeps a byte a weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, codes: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.entries = codebook.shape[1]
        return codebook.to(dtype).gather(1, codes.to(torch.int64))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (codes,) = ctx.saved_tensors
        sums = gradient.new_zeros(len(codes), ctx.entries, dtype=torch.float32)
        return sums.scatter_add_(1, codes.to(torch.int64), gradient.float()), None, None
