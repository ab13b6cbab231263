"""Partly binary: most weights get very few levels, the salient ones a uniform grid of their own.

Low weights of a row and group: `2^b` levels, equally spaced from `mean - magnitude` to
`mean + magnitude`; with b = 1 these two are all (binary), with b = 0 the weight is 0. High
weights: `scale * (code - zero)`, one scale a row. A mask of one bit a weight says which is
which; the codes of either kind lie in one list, row after row, so every weight is stored once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from q2n.grids.quantized import QuantizedLinear


@dataclass(frozen=True, kw_only=True, eq=False)
class PartlyBinaryLinear(QuantizedLinear):
    """Two grids and a mask: low weights with few levels, high weights with many."""

    kind: ClassVar[str] = "partly_binary"

    low: Bool[Tensor, "out m"]
    """The mask: which weights are low."""
    low_codes: UInt8[Tensor, " low"] | None
    """0 .. 2^low_bits - 1, in the order of the mask; None if low weights are 0."""
    high_codes: UInt8[Tensor, " high"]
    """0 .. 2^high_bits - 1, in the order of the mask's complement."""
    mean: Float[Tensor, "out groups"] | None
    """Middle of the low levels, in the dtype in which it is stored; None for 0."""
    magnitude: Float[Tensor, "out groups"] | None
    """Half the range of the low levels; None if low weights are 0."""
    scale: Float[Tensor, "out 1"]
    """Of the high weights, in the dtype in which it is stored."""
    zero: UInt8[Tensor, "out 1"]
    low_bits: int
    high_bits: int
    group_size: int
    """Columns that share mean and magnitude; all of them for one of each a row."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.low.shape
        return rows, columns

    def dequantize(self) -> Float[Tensor, "out m"]:
        codes = torch.empty(self.low.shape, device=self.low.device)
        codes[~self.low] = self.high_codes.float()
        high = (codes - self.zero.float()) * self.scale.float()
        if self.low_codes is None or self.magnitude is None:
            return high.masked_fill(self.low, 0)
        codes[self.low] = self.low_codes.float()
        position = codes * (2 / (2**self.low_bits - 1)) - 1  # -1 .. 1
        low = self._by_column(self.magnitude) * position
        if self.mean is not None:
            low += self._by_column(self.mean)
        return torch.where(self.low, low, high)

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        factor = alpha.float().unsqueeze(1)
        scaled: dict[str, Any] = {
            name: (values.float() * factor).to(values.dtype)
            for name, values in self.tensors().items()
            if name in ("mean", "magnitude", "scale")
        }
        return replace(self, **scaled)

    @property
    def stored_bits(self) -> int:
        width = {name: 8 * values.element_size() for name, values in self.tensors().items()}
        width |= self.widths
        return sum(width[name] * values.numel() for name, values in self.tensors().items())

    def tensors(self) -> dict[str, Tensor]:
        given = {
            "low": self.low.to(torch.uint8),
            "low_codes": self.low_codes,
            "high_codes": self.high_codes,
            "mean": self.mean,
            "magnitude": self.magnitude,
            "scale": self.scale,
            "zero": self.zero,
        }
        return {name: values for name, values in given.items() if values is not None}

    @property
    def widths(self) -> Mapping[str, int]:
        codes = {} if self.low_codes is None else {"low_codes": self.low_bits}
        return {"low": 1, **codes, "high_codes": self.high_bits, "zero": self.high_bits}

    def metadata(self) -> dict[str, int | float | bool | str]:
        return {
            "low_bits": self.low_bits,
            "high_bits": self.high_bits,
            "group_size": self.group_size,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        return cls(
            low=tensors["low"].bool(),
            low_codes=tensors.get("low_codes"),
            high_codes=tensors["high_codes"],
            mean=tensors.get("mean"),
            magnitude=tensors.get("magnitude"),
            scale=tensors["scale"],
            zero=tensors["zero"],
            low_bits=metadata["low_bits"],
            high_bits=metadata["high_bits"],
            group_size=metadata["group_size"],
        )

    def _by_column(self, groups: Float[Tensor, "out groups"]) -> Float[Tensor, "out _"]:
        return groups.float().repeat_interleave(self.group_size, 1)[:, : self.low.shape[1]]
