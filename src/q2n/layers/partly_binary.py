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
from torch import Tensor, nn

from q2n.layers.autograd import scaled
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.groups import in_groups


@dataclass(frozen=True, kw_only=True, eq=False)
class PartlyBinaryLinear(QuantizedLinear):
    """Two grids and a mask: low weights with few levels, high weights with many."""

    kind: ClassVar[str] = "partly_binary"

    low: Bool[Tensor, "out in"]
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

    def dequantize(self) -> Float[Tensor, "out in"]:
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
        changed: dict[str, Any] = {
            name: (values.float() * factor).to(values.dtype)
            for name, values in self.tensors().items()
            if name in ("mean", "magnitude", "scale")
        }
        return replace(self, **changed)

    def trainable(self, *, rounding: bool) -> "TrainablePartlyBinary":
        return TrainablePartlyBinary(self)

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


class TrainablePartlyBinary(nn.Module):
    """The trainable form of a `PartlyBinaryLinear`, a sum of whole steps times factors:

        W = s (high code - zero) + a (2 low code - top) / top + c [low],

    scale s, magnitude a and mean c. The change of a mean is relative to its magnitude, as the
    mean may be 0. Codes and mask stay."""

    code_change = None

    def __init__(self, layer: PartlyBinaryLinear):
        super().__init__()
        self.layer = layer
        factors = {"scale": layer.scale, "magnitude": layer.magnitude, "mean": layer.mean}
        self._factors = {key: value for key, value in factors.items() if value is not None}
        self._widths = [value.shape[1] for value in self._factors.values()]
        self.scale_change = nn.Parameter(
            torch.zeros(len(layer.low), sum(self._widths), device=layer.low.device)
        )
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
            scaled(self._steps[key], factor / top.get(key, 1), dtype).flatten(1)[:, :columns]
            for key, factor in self._changed().items()
        ]
        return torch.stack(parts).sum(0)

    @torch.no_grad()
    def quantized(self) -> PartlyBinaryLinear:
        """The layer with the tuned factors."""
        changed = self._changed()
        stored: dict[str, Any] = {
            key: changed[key].to(value.dtype) for key, value in self._factors.items()
        }
        return replace(self.layer, **stored)

    def _changed(self) -> dict[str, Tensor]:
        changes = self.scale_change.split(self._widths, 1)
        found = {}
        for (key, value), change in zip(self._factors.items(), changes, strict=True):
            unit = self._factors["magnitude"] if key == "mean" else value
            found[key] = value.float() + change * unit.float()
        return found

    def _high_steps(self) -> Tensor:
        high = ~self.layer.low
        steps = torch.zeros(self.layer.shape, dtype=torch.int16, device=high.device)
        steps[high] = self.layer.high_codes.to(torch.int16)
        return ((steps - self.layer.zero.to(torch.int16)) * high).unsqueeze(1)

    def _low_steps(self, codes: UInt8[Tensor, " low"]) -> Tensor:
        low, top = self.layer.low, 2**self.layer.low_bits - 1
        steps = torch.zeros(self.layer.shape, dtype=torch.int16, device=low.device)
        steps[low] = 2 * codes.to(torch.int16) - top
        return in_groups(steps.to(torch.int8), self.layer.group_size)
