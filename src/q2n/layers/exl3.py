r"""A linear in EXL3, the trellis code of exllamav3 (linalg/exl3_code.py), in a rotated basis.

    W = diag(svh) H A^T H diag(suh)

A is the matrix of decoded tiles, [in, out], H the Hadamard matrix of each 128 channels
(linalg/block_hadamard.py). suh and svh hold signs, which make the rotation random, and scales per
input and per output. svh comes after everything else: a factor per row goes into it.

Inputs and outputs are filled up to a multiple of 128 for A, and cut off again outside.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor, nn

from q2n.layers.autograd import scaled_rows, zero_change
from q2n.layers.fields import CodeBits, packed
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.block_hadamard import both_sided, padded
from q2n.linalg.exl3_code import CodebookName, decoded


@dataclass(frozen=True, kw_only=True, eq=False)
class EXL3Linear(QuantizedLinear):
    """EXL3: codes of a trellis in tiles of 16 x 16, a scale per input and per output."""

    kind: ClassVar[str] = "trellis_tiles"

    codes: UInt8[Tensor, "padded_out padded_in"] = packed("bits")
    """Of each weight of A^T, at its place."""
    suh: Float16[Tensor, " in"]
    svh: Float16[Tensor, " out"]
    bits: CodeBits
    codebook: CodebookName

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.svh), len(self.suh)

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.unscaled() * self.svh.float()[:, None]

    def unscaled(self) -> Float[Tensor, "out in"]:
        """What svh multiplies."""
        inner = decoded(self.codes.T, self.bits, self.codebook).T
        return both_sided(inner)[: len(self.svh), : len(self.suh)] * self.suh.float()

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return replace(self, svh=(self.svh.float() * alpha.float()).half())

    def trainable(self, *, rounding: bool) -> "TrainableEXL3":
        return TrainableEXL3(self)

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return all(sizes[f"padded_{side}"] == padded(sizes[side]) for side in ("out", "in"))


class TrainableEXL3(nn.Module):
    """The trainable form of an `EXL3Linear`: svh. Codes depend on each other and stay."""

    code_change = None

    def __init__(self, layer: EXL3Linear):
        super().__init__()
        self.layer, self._unscaled = layer, layer.unscaled()
        self.scale_change = zero_change(layer.svh)

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameter."""
        return scaled_rows(self._unscaled, self._svh(), dtype)

    @torch.no_grad()
    def quantized(self) -> EXL3Linear:
        """The layer with the tuned svh."""
        return replace(self.layer, svh=self._svh().half())

    def _svh(self) -> Float[Tensor, " out"]:
        return self.layer.svh.float() * (1 + self.scale_change)
