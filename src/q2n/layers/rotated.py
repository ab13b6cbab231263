"""A quantized layer that is stored in another basis: QuIP's incoherence (linalg/basis.py).

What is stored beside the layer within: the seed from which U and V are made again (64 bits), the
rescaling s (16 bits an input channel), and, if a factor a row came after the rotation back,
that gain (16 bits an output channel).

Why a seed and not the factors: the small Kronecker factors and the permutations of a
576 x 576 layer would be 0.3 bits a weight (0.04 at 4096 x 4096), independent blocks 5; and
the stream is one that does not change with the machine (linalg/random_orthogonal.py).

A row of the layer is a mixture of all rows within, so a factor a row cannot be absorbed by their
scales once U has mixed them: it needs the gain. Without U it goes within.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.layers.centred import CentredLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.quantized import QuantizedLinear, Trainable
from q2n.layers.uniform import UniformLinear
from q2n.linalg.basis import Basis
from q2n.linalg.random_orthogonal import Mode, random_rotation

WITHIN = {kind.kind: kind for kind in (UniformLinear, CentredLinear, LloydMaxLinear, TrellisLinear)}
"""Representations that may lie within, by kind."""

Projection = Literal[Mode, "off"]

RESCALE_DTYPE = torch.bfloat16
"""Its range matters, its precision does not: s is rounded before it is used."""
GAIN_DTYPE = torch.float16
_SEED_BITS = 64


def basis_of(
    shape: tuple[int, int],
    projection: Projection,
    seed: int,
    rescale: Float[Tensor, " in"] | None,
) -> Basis:
    """The basis that is stored as a seed and s, for a layer of `shape` (out, in)."""
    if projection == "off":
        return Basis(rescale=rescale)
    rows, columns = shape
    left = random_rotation(rows, projection, seed, stream=0)
    right = random_rotation(columns, projection, seed, stream=1)
    return Basis(left, right, rescale)


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedLinear(QuantizedLinear):
    """Another grid in a random basis: its codes, a seed, and a factor a channel."""

    kind: ClassVar[str] = "rotated"

    inner: QuantizedLinear
    """Q', in that basis."""
    projection: Projection
    seed: int
    rescale: Float[Tensor, " in"] | None
    """s, if the input channels were rescaled."""
    gain: Float[Tensor, " out"] | None = None
    """Factors of the output channels, if a step came after the rotation back."""

    @cached_property
    def basis(self) -> Basis:
        """U, V and s."""
        return basis_of(self.shape, self.projection, self.seed, self.rescale)

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def dequantize(self) -> Float[Tensor, "out in"]:
        weight = self.basis.weight_back(self.inner.dequantize())
        return weight if self.gain is None else weight * self.gain.float()[:, None]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        if self.projection == "off":
            return replace(self, inner=self.inner.scale_rows(alpha))
        before = 1.0 if self.gain is None else self.gain.float()
        return replace(self, gain=(before * alpha.float()).to(GAIN_DTYPE))

    def trainable(self, *, rounding: bool) -> "TrainableRotated":
        return TrainableRotated(self, self.inner.trainable(rounding=rounding))

    @property
    def stored_bits(self) -> int:
        seed = 0 if self.projection == "off" else _SEED_BITS
        vectors = [part for part in (self.rescale, self.gain) if part is not None]
        small = sum(8 * part.element_size() * part.numel() for part in vectors)
        return self.inner.stored_bits + seed + small

    def tensors(self) -> dict[str, Tensor]:
        own = {"rescale": self.rescale, "gain": self.gain}
        within = {f"inner_{name}": tensor for name, tensor in self.inner.tensors().items()}
        return within | {name: tensor for name, tensor in own.items() if tensor is not None}

    @property
    def widths(self) -> Mapping[str, int]:
        return {f"inner_{name}": width for name, width in self.inner.widths.items()}

    def metadata(self) -> dict[str, int | float | bool | str]:
        return {
            "inner": self.inner.kind,
            "projection": self.projection,
            "seed": self.seed,
            **{f"inner_{name}": value for name, value in self.inner.metadata().items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        return cls(
            inner=WITHIN[metadata["inner"]].from_tensors(_within(tensors), _within(metadata)),
            projection=metadata["projection"],
            seed=metadata["seed"],
            rescale=tensors.get("rescale"),
            gain=tensors.get("gain"),
        )


class TrainableRotated:
    """The trainable form of a `RotatedLinear`: that of the layer within; the gain stays."""

    def __init__(self, layer: RotatedLinear, inner: Trainable):
        self.layer, self.inner = layer, inner

    @property
    def scale_change(self) -> Tensor:
        return self.inner.scale_change

    @property
    def code_change(self) -> Tensor | None:
        return self.inner.code_change

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The dense weight, differentiable in the parameters; rotated in float32."""
        weight = _Back.apply(self.inner.weight(torch.float32), self.layer.basis)
        if self.layer.gain is not None:
            weight = weight * self.layer.gain.float().unsqueeze(1)
        return weight.to(dtype)

    def quantized(self) -> RotatedLinear:
        """The layer with the tuned scales and codes."""
        return replace(self.layer, inner=self.inner.quantized())


class _Back(torch.autograd.Function):
    """`basis.weight_back`, `Q = U^T Q' V diag(s)^-1`. Its gradient is that map's adjoint,
    `U (g diag(s)^-1) V^T`, which `basis.weight` computes of `g diag(s)^-2`. Nothing is kept."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, basis: Basis) -> Tensor:
        ctx.basis = basis
        return basis.weight_back(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        s = ctx.basis.rescale
        return ctx.basis.weight(gradient if s is None else gradient / s.to(gradient) ** 2), None


def _within(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the layer within, under their own names."""
    found = {key: value for key, value in entries.items() if key.startswith("inner_")}
    return {key.removeprefix("inner_"): value for key, value in found.items()}
