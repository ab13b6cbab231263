r"""A uniform grid without a zero point: 2^b levels spread evenly over [-S, S].

`w ~ S (2 k / (2^b - 1) - 1)`, k = 0 .. 2^b - 1: at 2 bits S times -1, -1/3, 1/3, 1. One S a
matrix, for weights that a random rotation has made alike (Gaussian); weights outside [-S, S] are
clamped. There is no level at 0, so this is no `UniformLinear`, whose zero point is a code.

How S is chosen: grids/gaussian_range.py.

A factor a row (`scale_rows`) turns the one scale into one a row, and is counted so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import latent, rounded_codes, scaled, scaled_rounded
from q2n.layers.quantized import QuantizedLinear, Trainable


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredLinear(QuantizedLinear):
    """Uniform grid centred on 0: scale * (2 code / (2^bits - 1) - 1), one scale a matrix or row."""

    kind: ClassVar[str] = "centred"

    codes: UInt8[Tensor, "out in"]
    """0 .. 2^bits - 1, a byte each."""
    scale: Float[Tensor, " scales"]
    """S: one, or one a row; in the dtype in which it is stored."""
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Float[Tensor, "out in"]:
        return (self.codes.float() * (2 / (2**self.bits - 1)) - 1) * self.scale.float()[:, None]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return self.with_scale(self.scale.float() * alpha.float())

    def with_scale(self, scale: Float[Tensor, " scales"]) -> Self:
        """The same codes with other scales, rounded to the dtype of the old ones."""
        return replace(self, scale=scale.to(self.scale.dtype))

    def trainable(self, *, rounding: bool) -> Trainable:
        return TrainableCentred(self, rounding=rounding)

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


class TrainableCentred(nn.Module):
    """The trainable form of a `CentredLinear`: steps `2 code - top` of `scale / top`."""

    def __init__(self, layer: CentredLinear, *, rounding: bool):
        super().__init__()
        self.layer = layer
        self.top = 2**layer.bits - 1
        self.scale_change = nn.Parameter(torch.zeros_like(layer.scale, dtype=torch.float32))
        codes = torch.zeros_like(layer.codes, dtype=torch.float32)
        self.code_change = nn.Parameter(codes) if rounding else None
        steps = 2 * layer.codes.to(torch.int16) - self.top
        self._steps = steps if layer.bits == 8 else steps.to(torch.int8)

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        step = (self._scale() / self.top).expand(len(self._steps)).unsqueeze(1)
        if self.code_change is None:
            return scaled(self._steps.unsqueeze(1), step, dtype).squeeze(1)
        codes = latent(self.layer.codes, self.code_change).unsqueeze(1)
        return scaled_rounded(codes, 2 * step, self.top / 2, self.top, dtype).squeeze(1)

    @torch.no_grad()
    def quantized(self) -> CentredLinear:
        """The layer with the tuned scales and codes."""
        codes = rounded_codes(self.layer.codes, self.code_change, self.top)
        return replace(self.layer.with_scale(self._scale()), codes=codes)

    def _scale(self) -> Float[Tensor, " scales"]:
        return self.layer.scale.float() * (1 + self.scale_change)
