"""A linear on a uniform grid: `w ~ scale * (code - zero)`, codes 0 .. 2^b - 1.

How scale and zero point are chosen: grids/uniform.py and its neighbours.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import latent, rounded_codes, scaled, scaled_rounded, zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.groups import grouped, groups_of_part, in_groups
from q2n.option_types import Count


@dataclass(frozen=True, kw_only=True)
class UniformStorage(StorageSpec):
    """What a method on a uniform grid stores."""

    kind: str = "uniform"
    bits: int
    group_size: int
    """-1: all columns of a row are one group."""
    symmetric: bool = False
    """Whether zero points are the middle of the codes by definition."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UniformLinear(QuantizedLinear):
    """Uniform grid: scale * (code - zero), one scale per row and `group_size` columns."""

    kind: ClassVar[str] = UniformStorage.kind

    codes: UInt8[Tensor, "out in"] = packed("bits")
    """0 .. 2^bits - 1, a byte each."""
    scale: Float[Tensor, "out groups"]
    """In the dtype in which it is stored."""
    zero: UInt8[Tensor, "out groups"] = packed("bits")
    """2^(bits-1) everywhere if symmetric, and then not stored."""
    bits: CodeBits
    group_size: Count
    """Columns that share a scale; all of them for one scale per row."""
    symmetric: bool

    def dequantize(self) -> Float[Tensor, "out in"]:
        steps = in_groups(self.codes, self.group_size).float()
        steps.sub_(self.zero.float().unsqueeze(2)).mul_(self.scale.float().unsqueeze(2))
        return steps.flatten(1)[:, : self.codes.shape[1]]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return self.scale_groups(alpha.unsqueeze(1))

    @property
    def scale_group(self) -> int:
        return self.group_size

    def scale_groups(self, alpha: Float[Tensor, "out _"]) -> Self:
        scale = self.scale.float() * alpha.float()
        return replace(self, scale=scale.to(self.scale.dtype))

    def part(self, rows: slice, columns: slice) -> Self:
        groups, size = groups_of_part(columns, self.group_size)
        return replace(
            self,
            codes=self.codes[rows, columns],
            scale=self.scale[rows, groups],
            zero=self.zero[rows, groups],
            group_size=size,
        )

    def trainable(self, *, rounding: bool) -> "TrainableUniform":
        return TrainableUniform(self, rounding=rounding)

    def tensors(self) -> dict[str, Shaped[Tensor, "..."]]:
        tensors = super().tensors()
        if self.symmetric:
            del tensors["zero"]
        return tensors

    @property
    def widths(self) -> Mapping[str, int]:
        return {name: bits for name, bits in super().widths.items() if name in self.tensors()}

    @classmethod
    def stored_dims(cls, metadata: Mapping[str, Any]) -> Mapping[str, str | None]:
        return {"zero": None} if metadata["symmetric"] else {}

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return grouped(sizes, metadata["group_size"])

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Shaped[Tensor, "..."]], metadata: Mapping[str, Any]
    ) -> Self:
        if metadata["symmetric"]:
            middle = 2 ** (metadata["bits"] - 1)
            zero = tensors["codes"].new_full(tensors["scale"].shape, middle)
            tensors = {**tensors, "zero": zero}
        return super().from_tensors(tensors, metadata)


class TrainableUniform(nn.Module):
    """The trainable form of a `UniformLinear`: its scales and, with `rounding`, its codes."""

    def __init__(self, layer: UniformLinear, *, rounding: bool):
        super().__init__()
        self.layer = layer
        self.scale_change = zero_change(layer.scale)
        self.code_change = zero_change(layer.codes) if rounding else None
        self._top = 2**layer.bits - 1
        self._zero = layer.zero.to(torch.int16).unsqueeze(2)
        self._steps = self._whole_steps()

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        if self.code_change is None:
            dense = scaled(self._steps, self._scale(), dtype)
        else:
            codes = latent(self.layer.codes, self.code_change)
            groups = in_groups(codes, self.layer.group_size)
            dense = scaled_rounded(groups, self._scale(), self._zero, self._top, dtype)
        return dense.flatten(1)[:, : self.layer.shape[1]]

    @torch.no_grad()
    def quantized(self) -> UniformLinear:
        """The layer with the tuned scales and codes."""
        codes = rounded_codes(self.layer.codes, self.code_change, self._top)
        return replace(self.layer, codes=codes, scale=self._scale().to(self.layer.scale.dtype))

    def _scale(self) -> Float[Tensor, "out groups"]:
        return self.layer.scale.float() * (1 + self.scale_change)

    def _whole_steps(self) -> Int[Tensor, "out groups size"]:
        """Code less zero point; at 8 bits this needs more than a signed byte."""
        steps = in_groups(self.layer.codes, self.layer.group_size).to(torch.int16) - self._zero
        return steps if self.layer.bits == 8 else steps.to(torch.int8)
