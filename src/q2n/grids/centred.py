r"""A uniform grid without a zero point: 2^b levels spread evenly over [-S, S].

`w ~ S (2 k / (2^b - 1) - 1)`, k = 0 .. 2^b - 1: at 2 bits S times -1, -1/3, 1/3, 1. One S a
matrix, `S = 2.4 RMS(W)`, as QuIP takes for weights that a random rotation has made alike
(Gaussian); weights outside [-S, S] are clamped. There is no level at 0, so this is no
`AffineLinear`, whose zero point is a code.

A factor a row (`scale_rows`) turns the one scale into one a row, and is counted so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.errors import NumericalError
from q2n.grids.quantized import QuantizedLinear

_SPREAD = 2.4
"""S in units of the root mean square: QuIP's rho."""


def fit(weight: Float[Tensor, "out m"], dtype: torch.dtype, name: str) -> Float[Tensor, "1"]:
    """S of a layer `name`, in the dtype in which it is stored.

    Raises:
        NumericalError: weights that are not finite, or an S that overflows `dtype`.
    """
    exact = _SPREAD * weight.square().mean().sqrt()
    scale = exact.to(dtype).clamp(min=torch.finfo(dtype).tiny)
    if not torch.isfinite(scale):
        raise NumericalError(
            f"{name}: a scale of {float(exact):.3g} cannot be stored in {dtype}; its weight is "
            "not finite, or store the checkpoint in bfloat16 or float32"
        )
    return scale.unsqueeze(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredLinear(QuantizedLinear):
    """Uniform grid centred on 0: scale * (2 code / (2^bits - 1) - 1), one scale a matrix or row."""

    kind: ClassVar[str] = "centred"

    codes: UInt8[Tensor, "out m"]
    """0 .. 2^bits - 1, a byte each."""
    scale: Float[Tensor, " scales"]
    """S: one, or one a row; in the dtype in which it is stored."""
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Float[Tensor, "out m"]:
        return (self.codes.float() * (2 / (2**self.bits - 1)) - 1) * self.scale.float()[:, None]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return replace(self, scale=(self.scale.float() * alpha.float()).to(self.scale.dtype))

    @property
    def stored_bits(self) -> int:
        scales = 8 * self.scale.element_size() * self.scale.numel()
        return self.bits * self.codes.numel() + scales

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scale": self.scale}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": self.bits}

    def metadata(self) -> dict[str, int | float | bool | str]:
        return {"bits": self.bits}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        return cls(codes=tensors["codes"], scale=tensors["scale"], bits=metadata["bits"])
