r"""A uniform grid without a zero point: 2^b levels spread evenly over [-S, S].

`w ~ S (2 k / (2^b - 1) - 1)`, k = 0 .. 2^b - 1: at 2 bits S times -1, -1/3, 1/3, 1. One S per
matrix, for weights that a random rotation has made alike (Gaussian); weights outside [-S, S] are
clamped. There is no level at 0, so this is no `UniformLinear`, whose zero point is a code.

A factor per row (`scale_rows`) turns the one scale into a scale per row, and these are counted.

How S is chosen: grids/gaussian_range.py.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import latent, rounded_codes, scaled, scaled_rounded, zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear, Trainable


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredLinear(QuantizedLinear):
    """Uniform grid centred on 0: scale * (2 code / (2^bits - 1) - 1), scale per matrix or row."""

    kind: ClassVar[str] = "centred"

    codes: UInt8[Tensor, "out in"] = packed("bits")
    """0 .. 2^bits - 1, a byte each."""
    scale: Float[Tensor, " scales"]
    """S: one, or one per row; in the dtype in which it is stored."""
    bits: CodeBits

    def dequantize(self) -> Float[Tensor, "out in"]:
        return (self.codes.float() * (2 / (2**self.bits - 1)) - 1) * self.scale.float()[:, None]

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return sizes["scales"] in (1, sizes["out"])

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return self.with_scale(self.scale.float() * alpha.float())

    def with_scale(self, scale: Float[Tensor, " scales"]) -> Self:
        """The same codes with other scales, rounded to the dtype of the old ones."""
        return replace(self, scale=scale.to(self.scale.dtype))

    def part(self, rows: slice, columns: slice) -> Self:
        scale = self.scale if len(self.scale) == 1 else self.scale[rows]
        return replace(self, codes=self.codes[rows, columns], scale=scale)

    def trainable(self, *, rounding: bool) -> Trainable:
        return TrainableCentred(self, rounding=rounding)


class TrainableCentred(nn.Module):
    """The trainable form of a `CentredLinear`: steps `2 code - top` of `scale / top`."""

    def __init__(self, layer: CentredLinear, *, rounding: bool):
        super().__init__()
        self.layer = layer
        self.scale_change = zero_change(layer.scale)
        self.code_change = zero_change(layer.codes) if rounding else None
        self._top = 2**layer.bits - 1
        self._steps = self._whole_steps()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        step = (self._scale() / self._top).expand(self.layer.shape[0]).unsqueeze(1)
        if self.code_change is None:
            return scaled(self._steps, step, dtype).squeeze(1)
        codes = latent(self.layer.codes, self.code_change).unsqueeze(1)
        return scaled_rounded(codes, 2 * step, self._top / 2, self._top, dtype).squeeze(1)

    @torch.no_grad()
    def quantized(self) -> CentredLinear:
        """The layer with the tuned scales and codes."""
        codes = rounded_codes(self.layer.codes, self.code_change, self._top)
        return replace(self.layer.with_scale(self._scale()), codes=codes)

    def _scale(self) -> Float[Tensor, " scales"]:
        return self.layer.scale.float() * (1 + self.scale_change)

    def _whole_steps(self) -> Int[Tensor, "out 1 in"]:
        """At 8 bits these need more than a signed byte."""
        steps = (2 * self.layer.codes.to(torch.int16) - self._top).unsqueeze(1)
        return steps if self.layer.bits == 8 else steps.to(torch.int8)
