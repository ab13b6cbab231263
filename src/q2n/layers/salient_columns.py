"""Binary, except for whole columns that are salient: these lie on a uniform grid (PTQ1.61).

    low columns      w_ij ~ f_j (m_i + a_i s_ij),  s = -1 or 1
    salient columns  w_ij ~ scale_i (code_ij - zero_i)

m and a are the row's mean and magnitude, f the column's factor. Which columns are salient is one
bit per column, so that a weight costs 1 bit, or `high_bits` in the salient columns, and next to
nothing besides.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int8, Shaped, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class SalientColumnsLinear(QuantizedLinear):
    """One bit per weight with factors of rows and columns; salient columns on a uniform grid."""

    kind: ClassVar[str] = "salient_columns"

    salient: Bool[Tensor, " in"] = packed(1)
    """Which columns are."""
    low_codes: UInt8[Tensor, "out low"] = packed(1)
    """1 for s = 1; columns in their order in the layer."""
    high_codes: UInt8[Tensor, "out high"] = packed("high_bits")
    """0 .. 2^high_bits - 1; columns in their order in the layer."""
    mean: Float[Tensor, " out"]
    magnitude: Float[Tensor, " out"]
    factor: Float[Tensor, " low"]
    scale: Float[Tensor, " out"]
    """Of the salient columns. All five are in the dtype in which they are stored."""
    zero: UInt8[Tensor, " out"] = packed("high_bits")
    high_bits: CodeBits

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.low_codes), len(self.salient)

    def dequantize(self) -> Float[Tensor, "out in"]:
        low = self.mean.float().unsqueeze(1) + self.magnitude.float().unsqueeze(1) * self.signs()
        return self.merged(low * self.factor.float(), self.high())

    def signs(self) -> Int8[Tensor, "out low"]:
        """s."""
        return 2 * self.low_codes.to(torch.int8) - 1

    def high(self, scale: Float[Tensor, " out"] | None = None) -> Float[Tensor, "out high"]:
        """The weights of the salient columns, with their own scales or others."""
        steps = self.high_codes.float() - self.zero.float().unsqueeze(1)
        return steps * (self.scale if scale is None else scale).float().unsqueeze(1)

    def merged(
        self, low: Float[Tensor, "out low"], high: Float[Tensor, "out high"]
    ) -> Float[Tensor, "out in"]:
        """Both kinds of columns in their places; differentiable."""
        order = torch.cat([(~self.salient).nonzero(), self.salient.nonzero()]).squeeze(1)
        return torch.cat([low, high.to(low)], 1)[:, order.argsort()]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        def scaled(values: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
            return (values.float() * alpha.float()).to(values.dtype)

        return replace(
            self,
            mean=scaled(self.mean),
            magnitude=scaled(self.magnitude),
            scale=scaled(self.scale),
        )

    def part(self, rows: slice, columns: slice) -> Self:
        salient = self.salient[columns]
        places = torch.where(self.salient, self.salient.cumsum(0), (~self.salient).cumsum(0)) - 1
        low, high = places[columns][~salient], places[columns][salient]
        return replace(
            self,
            salient=salient,
            low_codes=self.low_codes[rows][:, low],
            high_codes=self.high_codes[rows][:, high],
            mean=self.mean[rows],
            magnitude=self.magnitude[rows],
            factor=self.factor[low],
            scale=self.scale[rows],
            zero=self.zero[rows],
        )

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return sizes["low"] + sizes["high"] == sizes["in"]

    @classmethod
    def wrong_values(
        cls, shape: tuple[int, int], part: Callable[[str], Shaped[Tensor, "..."]]
    ) -> str | None:
        salient, codes = int(part("salient").sum()), part("high_codes").shape[1]
        return None if salient == codes else f"{salient} columns are salient, with {codes} of codes"

    def trainable(self, *, rounding: bool) -> "TrainableSalientColumns":
        return TrainableSalientColumns(self)


class TrainableSalientColumns(nn.Module):
    """The trainable form: a change of every row's scale, magnitude and mean, and of every column's
    factor. That of a mean is relative to the row's magnitude, as the mean may be 0."""

    code_change = None

    def __init__(self, layer: SalientColumnsLinear):
        super().__init__()
        self.layer = layer
        rows, low = layer.shape[0], len(layer.factor)
        self._sizes = [rows, rows, rows, low]
        self.scale_change = zero_change(layer.mean.new_empty(sum(self._sizes)))
        self._signs = layer.signs()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        scale, magnitude, mean, factor = self._changed()
        low = (mean.unsqueeze(1) + magnitude.unsqueeze(1) * self._signs) * factor
        return self.layer.merged(low, self.layer.high(scale)).to(dtype)

    @torch.no_grad()
    def quantized(self) -> SalientColumnsLinear:
        """The layer with the tuned values."""
        layer = self.layer
        scale, magnitude, mean, factor = self._changed()
        return replace(
            layer,
            scale=scale.to(layer.scale.dtype),
            magnitude=magnitude.to(layer.magnitude.dtype),
            mean=mean.to(layer.mean.dtype),
            factor=factor.to(layer.factor.dtype),
        )

    def _changed(self) -> list[Float[Tensor, " _"]]:
        layer = self.layer
        scale, magnitude, mean, factor = self.scale_change.split(self._sizes)
        size = layer.magnitude.float()
        return [
            layer.scale.float() * (1 + scale),
            size * (1 + magnitude),
            layer.mean.float() + mean * size,
            layer.factor.float() * (1 + factor),
        ]
