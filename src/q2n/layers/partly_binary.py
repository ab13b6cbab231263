"""Partly binary: most weights get very few levels, the salient ones a uniform grid of their own.

Low weights of a row and group: `2^b` levels, equally spaced from `mean - magnitude` to
`mean + magnitude`; with b = 1 these two are all (binary), with b = 0 the weight is 0. High
weights: `scale * (code - zero)`, one scale per row. A mask of one bit per weight says which is
which; the codes of each kind lie in one list, row after row, so every weight is stored once.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import scaled, zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.groups import by_column, grouped, groups_of_part, in_groups
from q2n.option_types import Count, Range


@dataclass(frozen=True, kw_only=True, eq=False)
class PartlyBinaryLinear(QuantizedLinear):
    """Two grids and a mask: low weights with few levels, high weights with many."""

    kind: ClassVar[str] = "partly_binary"

    low: Bool[Tensor, "out in"] = packed(1)
    """The mask: which weights are low."""
    low_codes: UInt8[Tensor, " low"] | None = packed("low_bits", default=None)
    """0 .. 2^low_bits - 1, in the order of the mask; None if low weights are 0."""
    high_codes: UInt8[Tensor, " high"] = packed("high_bits")
    """0 .. 2^high_bits - 1, in the order of the mask's complement."""
    mean: Float[Tensor, "out groups"] | None = None
    """Middle of the low levels, in the dtype in which it is stored; None for 0."""
    magnitude: Float[Tensor, "out groups"] | None = None
    """Half the range of the low levels; None if low weights are 0."""
    scale: Float[Tensor, "out 1"]
    """Of the high weights, in the dtype in which it is stored."""
    zero: UInt8[Tensor, "out 1"] = packed("high_bits")
    low_bits: Annotated[int, Range(low=0, high=8)]
    high_bits: CodeBits
    group_size: Count
    """Columns that share mean and magnitude; all of them for one of each per row."""

    def dequantize(self) -> Float[Tensor, "out in"]:
        codes = torch.empty(self.low.shape, device=self.low.device)
        codes[~self.low] = self.high_codes.float()
        high = (codes - self.zero.float()) * self.scale.float()
        if self.low_codes is None or self.magnitude is None:
            return high.masked_fill(self.low, 0)
        codes[self.low] = self.low_codes.float()
        position = codes * (2 / (2**self.low_bits - 1)) - 1  # -1 .. 1
        columns = self.low.shape[1]
        low = by_column(self.magnitude.float(), self.group_size, columns) * position
        if self.mean is not None:
            low += by_column(self.mean.float(), self.group_size, columns)
        return torch.where(self.low, low, high)

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        of_low = {"low_codes", "magnitude"} & tensors
        if metadata["low_bits"] == 0:
            return not of_low and "mean" not in tensors
        whole = sizes["out"] * sizes["in"] == sizes.get("low", 0) + sizes["high"]
        return len(of_low) == 2 and whole and grouped(sizes, metadata["group_size"])

    @classmethod
    def wrong_values(
        cls, shape: tuple[int, int], part: Callable[[str], Shaped[Tensor, "..."]]
    ) -> str | None:
        high, codes = int((~part("low")).sum()), part("high_codes").numel()
        return None if high == codes else f"{high} weights are high, with {codes} codes"

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        factor = alpha.float().unsqueeze(1)
        scaled: dict[str, Any] = {
            name: (values.float() * factor).to(values.dtype)
            for name, values in self.factors().items()
        }
        return replace(self, **scaled)

    def part(self, rows: slice, columns: slice) -> Self:
        groups, size = groups_of_part(columns, self.group_size)

        def listed(
            mask: Bool[Tensor, "out in"], codes: UInt8[Tensor, " some"]
        ) -> UInt8[Tensor, " fewer"]:
            """Those codes of a list that the part has."""
            places = codes.new_zeros(mask.shape).masked_scatter_(mask, codes)
            return places[rows, columns][mask[rows, columns]]

        return replace(
            self,
            low=self.low[rows, columns],
            low_codes=None if self.low_codes is None else listed(self.low, self.low_codes),
            high_codes=listed(~self.low, self.high_codes),
            mean=None if self.mean is None else self.mean[rows, groups],
            magnitude=None if self.magnitude is None else self.magnitude[rows, groups],
            scale=self.scale[rows],
            zero=self.zero[rows],
            group_size=size,
        )

    def trainable(self, *, rounding: bool) -> "TrainablePartlyBinary":
        return TrainablePartlyBinary(self)

    def factors(self) -> dict[str, Float[Tensor, "out _"]]:
        """What the weights are linear in: scale, magnitude and mean, as far as there are any."""
        factors = {"scale": self.scale, "magnitude": self.magnitude, "mean": self.mean}
        return {name: values for name, values in factors.items() if values is not None}


class TrainablePartlyBinary(nn.Module):
    """The trainable form of a `PartlyBinaryLinear`, a sum of whole steps times factors:

        W = s (high code - zero) + a (2 low code - top) / top + c [low],

    scale s, magnitude a and mean c. The change of a mean is relative to its magnitude, as the
    mean may be 0. Codes and mask stay.
    """

    code_change = None

    def __init__(self, layer: PartlyBinaryLinear):
        super().__init__()
        self.layer = layer
        self._factors = layer.factors()
        self._widths = [values.shape[1] for values in self._factors.values()]
        self.scale_change = zero_change(torch.cat(list(self._factors.values()), 1))
        self._steps = {"scale": self._high_steps()}
        if layer.low_codes is not None:
            self._steps["magnitude"] = self._low_steps(layer.low_codes)
        if layer.mean is not None:
            self._steps["mean"] = in_groups(layer.low.to(torch.int8), layer.group_size)

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the factors."""
        top = {"magnitude": 2**self.layer.low_bits - 1}
        columns = self.layer.shape[1]
        parts = [
            scaled(self._steps[name], factor / top.get(name, 1), dtype).flatten(1)[:, :columns]
            for name, factor in self._changed().items()
        ]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def quantized(self) -> PartlyBinaryLinear:
        """The layer with the tuned factors."""
        changed = self._changed()
        stored: dict[str, Any] = {
            name: changed[name].to(values.dtype) for name, values in self._factors.items()
        }
        return replace(self.layer, **stored)

    def _changed(self) -> dict[str, Float[Tensor, "out _"]]:
        changes = self.scale_change.split(self._widths, 1)
        changed = {}
        for (name, values), change in zip(self._factors.items(), changes, strict=True):
            unit = self._factors["magnitude"] if name == "mean" else values
            changed[name] = values.float() + change * unit.float()
        return changed

    def _high_steps(self) -> Int[Tensor, "out 1 in"]:
        high = ~self.layer.low
        steps = torch.zeros(self.layer.shape, dtype=torch.int16, device=high.device)
        steps[high] = self.layer.high_codes.to(torch.int16)
        return ((steps - self.layer.zero.to(torch.int16)) * high).unsqueeze(1)

    def _low_steps(self, codes: UInt8[Tensor, " low"]) -> Int[Tensor, "out groups size"]:
        low, top = self.layer.low, 2**self.layer.low_bits - 1
        steps = torch.zeros(self.layer.shape, dtype=torch.int16, device=low.device)
        steps[low] = 2 * codes.to(torch.int16) - top
        return in_groups(steps.to(torch.int8), self.layer.group_size)
