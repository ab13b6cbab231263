"""Uneven levels of a Gaussian times a scale: Lloyd-Max levels, and the values of a trellis code.

Both store what `CentredLinear` stores, codes of b bits and a scale per matrix or row; only the
value that a code stands for is another:

- Lloyd-Max: code k is level k of the 2^b levels with the least mean square error for a Gaussian
  (linalg/lloyd_max.py). The scale is the outermost level.
- Trellis: a code and those before it in its column make a state, which has a value
  (linalg/trellis_code.py). The scale is the root mean square of the weights.
"""

from collections.abc import Mapping, Set
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int16, Integer
from torch import Tensor, nn

from q2n.errors import InputError
from q2n.layers.autograd import scaled_levels, take_levels, zero_change
from q2n.layers.centred import CentredLinear
from q2n.linalg import lloyd_max, trellis_code


class LloydMaxLinear(CentredLinear):
    """Lloyd-Max levels of a Gaussian times a scale, scale per matrix or row."""

    kind: ClassVar[str] = "lloyd-max"

    def dequantize(self) -> Float[Tensor, "out in"]:
        return take_levels(self.levels, self.codes) * self.scale.float()[:, None]

    @property
    def levels(self) -> Float[Tensor, " levels"]:
        """In units of the scale, which is the outermost."""
        return (lloyd_max.levels(self.bits) / lloyd_max.outermost(self.bits)).to(
            self.scale.device, torch.float32
        )

    def trainable(self, *, rounding: bool) -> "TrainableLevels":
        return TrainableLevels(self, self.levels, self.codes)


class TrellisLinear(CentredLinear):
    """Trellis codes of Gaussian values times a scale, scale per matrix or row."""

    kind: ClassVar[str] = "trellis"

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return metadata["bits"] in trellis_code.DIGITS and super().fits(sizes, metadata, tensors)

    def dequantize(self) -> Float[Tensor, "out in"]:
        return take_levels(self._values(), self._states()) * self.scale.float()[:, None]

    def part(self, rows: slice, columns: slice) -> Self:
        """Rows come apart between the circular segments of the code, if those of the part alone
        are the same."""
        within = [rows.start + border for border in trellis_code.borders(rows.stop - rows.start)]
        whole = trellis_code.borders(self.shape[0])
        if [border for border in whole if rows.start <= border <= rows.stop] != within:
            raise InputError(
                f"trellis codes of {self.shape[0]} rows cannot be cut at rows {rows.start} and "
                f"{rows.stop}"
            )
        return super().part(rows, columns)

    def trainable(self, *, rounding: bool) -> "TrainableLevels":
        return TrainableLevels(self, self._values(), self._states())

    def _states(self) -> Int16[Tensor, "out in"]:
        return trellis_code.states(self.codes, self.bits)

    def _values(self) -> Float[Tensor, " states"]:
        """In units of the scale, the root mean square."""
        return trellis_code.values(self.bits).to(self.scale.device)


class TrainableLevels(nn.Module):
    """The trainable form of a layer of weights `scale * levels[index]`: its scales. Levels have no
    even steps that codes could move by: codes stay."""

    code_change = None

    def __init__(
        self,
        layer: CentredLinear,
        levels: Float[Tensor, " levels"],
        index: Integer[Tensor, "out in"],
    ):
        super().__init__()
        self.layer, self.levels, self.index = layer, levels, index
        self.scale_change = zero_change(layer.scale)

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        scale = self._scale().expand(self.layer.shape[0])
        return scaled_levels(scale, self.levels, self.index, dtype)

    @torch.no_grad()
    def quantized(self) -> CentredLinear:
        """The layer with the tuned scales."""
        return self.layer.with_scale(self._scale())

    def _scale(self) -> Float[Tensor, " scales"]:
        return self.layer.scale.float() * (1 + self.scale_change)
