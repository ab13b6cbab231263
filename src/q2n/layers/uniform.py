"""A linear on a uniform grid: `w ~ scale * (code - zero)`, codes 0 .. 2^b - 1.

How scale and zero point are chosen: grids/uniform.py and its neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import latent, rounded_codes, scaled, scaled_rounded
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg.groups import in_groups


@dataclass(frozen=True, kw_only=True)
class UniformStorage(StorageSpec):
    """What a method on a uniform grid stores."""

    kind: str = "affine"
    bits: int
    group_size: int
    """-1: one group a row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UniformLinear(QuantizedLinear):
    """Uniform grid: scale * (code - zero), `group_size` columns a scale."""

    kind: ClassVar[str] = UniformStorage.kind

    codes: UInt8[Tensor, "out in"]
    """0 .. 2^bits - 1, a byte each."""
    scale: Float[Tensor, "out groups"]
    """In the dtype in which it is stored."""
    zero: UInt8[Tensor, "out groups"]
    """2^(bits-1) everywhere if symmetric."""
    bits: int
    group_size: int
    """Columns that share a scale; all of them for one scale a row."""
    symmetric: bool

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

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
        scaled = self.scale.float() * alpha.float()
        return replace(self, scale=scaled.to(self.scale.dtype))

    def trainable(self, *, rounding: bool) -> "TrainableUniform":
        return TrainableUniform(self, rounding=rounding)

    @property
    def stored_bits(self) -> int:
        zeros = 0 if self.symmetric else self.bits * self.zero.numel()
        scales = 8 * self.scale.element_size() * self.scale.numel()
        return self.bits * self.codes.numel() + scales + zeros

    def tensors(self) -> dict[str, Tensor]:
        zero = {} if self.symmetric else {"zero": self.zero}
        return {"codes": self.codes, "scale": self.scale, **zero}

    @property
    def widths(self) -> Mapping[str, int]:
        return {name: self.bits for name in self.tensors() if name != "scale"}

    def metadata(self) -> dict[str, Any]:
        return {"bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        codes, scale, bits = tensors["codes"], tensors["scale"], metadata["bits"]
        middle = codes.new_full(scale.shape, 2 ** (bits - 1))
        return cls(
            codes=codes,
            scale=scale,
            zero=middle if metadata["symmetric"] else tensors["zero"],
            bits=bits,
            group_size=metadata["group_size"],
            symmetric=metadata["symmetric"],
        )


class TrainableUniform(nn.Module):
    """The trainable form of an `UniformLinear`."""

    def __init__(self, layer: UniformLinear, *, rounding: bool):
        super().__init__()
        self.layer = layer
        self.columns = layer.shape[1]
        self.scale_change = nn.Parameter(torch.zeros_like(layer.scale, dtype=torch.float32))
        codes = torch.zeros_like(layer.codes, dtype=torch.float32)
        self.code_change = nn.Parameter(codes) if rounding else None
        self.top = 2**layer.bits - 1
        self._scale = layer.scale.float()
        self._zero = layer.zero.to(torch.int16).unsqueeze(2)
        self._steps = self._centred(in_groups(layer.codes, layer.group_size))

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters."""
        scale = self._scale * (1 + self.scale_change)
        if self.code_change is None:
            dense = scaled(self._steps, scale, dtype)
        else:
            codes = latent(self.layer.codes, self.code_change)
            groups = in_groups(codes, self.layer.group_size)
            dense = scaled_rounded(groups, scale, self._zero, self.top, dtype)
        return dense.flatten(1)[:, : self.columns]

    @torch.no_grad()
    def quantized(self) -> UniformLinear:
        """The layer with the tuned scales and codes."""
        codes = rounded_codes(self.layer.codes, self.code_change, self.top)
        scale = self._scale * (1 + self.scale_change)
        return replace(self.layer, codes=codes, scale=scale.to(self.layer.scale.dtype))

    def _centred(self, codes: Tensor) -> Int[Tensor, "out groups size"]:
        steps = codes.to(torch.int16) - self._zero
        return steps if self.layer.bits == 8 else steps.to(torch.int8)
