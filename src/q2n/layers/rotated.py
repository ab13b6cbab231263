"""A layer that is stored in another basis: QuIP's incoherence (linalg/basis.py).

What is stored beside the layer within, which may be of any representation: the seed from which U
and V are made again (64 bits), the rescaling s (16 bits per input channel), and the output scales,
if a factor per row came after the rotation back (16 bits per output channel).

Why a seed and not the factors: the small Kronecker factors and the permutations of a
576 x 576 layer would be 0.3 bits per weight (0.04 at 4096 x 4096), independent blocks 5; and
the stream is one that does not change with the machine (linalg/random_orthogonal.py).

Once U has mixed them, a row of this layer is a mixture of all rows of the layer within. So the
scales within cannot absorb a factor per row: the output scales do, and they multiply the whole row,
also what lies in fixed columns within.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.layers.autograd import rotated_back, scaled_rows, zero_change
from q2n.layers.fields import nested
from q2n.layers.quantized import QuantizedLinear, Trainable
from q2n.linalg.basis import Basis
from q2n.linalg.random_orthogonal import Mode, factors, random_rotation
from q2n.option_types import Range

RESCALE_DTYPE = torch.bfloat16
"""Its range matters, its precision does not: s is rounded before it is used."""
OUTPUT_SCALE_DTYPE = torch.float16
LARGEST_FACTOR = 4096
"""Of a rotation: wider blocks cost more to make than the layer to quantize."""
_SEED_BITS = 64


def basis_of(
    shape: tuple[int, int],
    projection: Mode,
    seed: int,
    rescale: Float[Tensor, " in"] | None,
) -> Basis:
    """The basis that is stored as a seed and s, for a layer of `shape` (out, in)."""
    rows, columns = shape
    left = random_rotation(rows, projection, seed, stream=0)
    right = random_rotation(columns, projection, seed, stream=1)
    return Basis(left, right, rescale)


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedLinear(QuantizedLinear):
    """Another representation in a random basis: its tensors, a seed, and a factor per channel."""

    kind: ClassVar[str] = "rotated"

    inner: QuantizedLinear = nested()
    """Q', in that basis."""
    projection: Mode
    seed: Annotated[int, Range(low=-(2**63), high=2**64 - 1)]
    rescale: Float[Tensor, " in"] | None = None
    """s, if the input channels were rescaled."""
    output_scale: Float[Tensor, " out"] | None = None
    """Factors of the output channels, if a step came after the rotation back."""

    @cached_property
    def basis(self) -> Basis:
        """U, V and s."""
        return basis_of(self.shape, self.projection, self.seed, self.rescale)

    @classmethod
    def fits(cls, sizes: Mapping[str, int], metadata: Mapping[str, Any], tensors: Set[str]) -> bool:
        return all(max(factors(sizes[side])) <= LARGEST_FACTOR for side in ("out", "in"))

    def dequantize(self) -> Float[Tensor, "out in"]:
        weight = self.unscaled()
        return weight if self.output_scale is None else weight * self.output_scale.float()[:, None]

    def unscaled(self) -> Float[Tensor, "out in"]:
        """The dense weight without the output scales."""
        return self.basis.weight_back(self.inner.dequantize())

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        before = 1.0 if self.output_scale is None else self.output_scale.float()
        return replace(self, output_scale=(before * alpha.float()).to(OUTPUT_SCALE_DTYPE))

    def trainable(self, *, rounding: bool) -> Trainable:
        inner = self.inner.trainable(rounding=rounding)
        if self.output_scale is None or inner.code_change is not None:
            return TrainableRotated(self, inner)
        return TrainableOutputScales(self, self.output_scale)

    @property
    def metadata_bits(self) -> int:
        return super().metadata_bits + _SEED_BITS


class TrainableRotated:
    """The trainable form of a `RotatedLinear`: that of the layer within; output scales stay."""

    def __init__(self, layer: RotatedLinear, inner: Trainable):
        self.layer, self.inner = layer, inner
        self.scale_change, self.code_change = inner.scale_change, inner.code_change

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters; rotated in float32."""
        weight = rotated_back(self.inner.weight(torch.float32), self.layer.basis)
        if self.layer.output_scale is not None:
            weight = weight * self.layer.output_scale.float().unsqueeze(1)
        return weight.to(dtype)

    def quantized(self) -> RotatedLinear:
        """The layer with the tuned scales and codes."""
        return replace(self.layer, inner=self.inner.quantized())


class TrainableOutputScales:
    """A `RotatedLinear` whose output scales are trained, and nothing within: a factor for each
    channel that the model knows, where a scale within belongs to a mixture of them, or to all.

    The layer within is rotated back once, not in each step, and kept in the weight's dtype.
    """

    code_change = None

    def __init__(self, layer: RotatedLinear, scale: Float[Tensor, " out"]):
        self.layer, self._before = layer, scale
        self.scale_change = zero_change(scale)
        self._within: Float[Tensor, "out in"] | None = None

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the scales."""
        if self._within is None or self._within.dtype != dtype:
            self._within = self.layer.unscaled().to(dtype)
        return scaled_rows(self._within, self._scale(), dtype)

    @torch.no_grad()
    def quantized(self) -> RotatedLinear:
        """The layer with the tuned scales."""
        return replace(self.layer, output_scale=self._scale().to(self._before.dtype))

    def _scale(self) -> Float[Tensor, " out"]:
        return self._before.float() * (1 + self.scale_change)
