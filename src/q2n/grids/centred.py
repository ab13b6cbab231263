r"""A uniform grid without a zero point: 2^b levels spread evenly over [-S, S].

`w ~ S (2 k / (2^b - 1) - 1)`, k = 0 .. 2^b - 1: at 2 bits S times -1, -1/3, 1/3, 1. One S a
matrix, for weights that a random rotation has made alike (Gaussian); weights outside [-S, S] are
clamped. There is no level at 0, so this is no `AffineLinear`, whose zero point is a code.

The spread `S / RMS(W)` with the least expected square error on Gaussian weights depends on the
width (Max 1960): 1.49 at 2 bits, 2.05 at 3, 2.51 at 4. QuIP takes 2.4 at every width. At 2 bits
that makes each step 1.6 times the best one, and costs perplexity (docs/LOG.md).

A factor a row (`scale_rows`) turns the one scale into one a row, and is counted so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from q2n.errors import NumericalError
from q2n.grids.quantized import QuantizedLinear, Tunable
from q2n.grids.tunable import hardened_codes, latent, scaled, scaled_rounded

GAUSSIAN_SPREAD = {2: 1.494, 3: 2.051, 4: 2.514, 8: 3.922}
"""S in units of the root mean square that serves Gaussian weights best, by bits."""


def fit(
    weight: Float[Tensor, "out m"], spread: float, dtype: torch.dtype, name: str
) -> Float[Tensor, "1"]:
    """S of a layer `name`, `spread` times its root mean square, in the dtype in which it is stored.

    Raises:
        NumericalError: weights that are not finite, or an S that overflows `dtype`.
    """
    exact = spread * weight.square().mean().sqrt()
    scale = exact.to(dtype).clamp(min=torch.finfo(dtype).tiny)
    if not torch.isfinite(scale):
        raise NumericalError(
            f"{name}: a scale of {float(exact):.3g} cannot be stored in {dtype}; its weight is "
            "not finite, or store the checkpoint in bfloat16 or float32"
        )
    return scale.unsqueeze(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class CentredLinear(QuantizedLinear):
    """Uniform grid centred on 0: scale * (2 code / (2^bits - 1) - 1), one scale a matrix or row."""

    kind: ClassVar[str] = "centred"

    codes: UInt8[Tensor, "out m"]
    """0 .. 2^bits - 1, a byte each."""
    scale: Float[Tensor, " scales"]
    """S: one, or one a row; in the dtype in which it is stored."""
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Float[Tensor, "out m"]:
        return (self.codes.float() * (2 / (2**self.bits - 1)) - 1) * self.scale.float()[:, None]

    def scale_rows(self, alpha: Float[Tensor, " out"]) -> Self:
        return self.with_scale(self.scale.float() * alpha.float())

    def with_scale(self, scale: Float[Tensor, " scales"]) -> Self:
        """The same codes with other scales, rounded to the dtype of the old ones."""
        return replace(self, scale=scale.to(self.scale.dtype))

    def tunable(self, *, rounding: bool) -> Tunable:
        return TunableCentred(self, rounding=rounding)

    @property
    def stored_bits(self) -> int:
        scales = 8 * self.scale.element_size() * self.scale.numel()
        return self.bits * self.codes.numel() + scales

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scale": self.scale}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": self.bits}

    def metadata(self) -> dict[str, int | float | bool | str]:
        return {"bits": self.bits}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Self:
        return cls(codes=tensors["codes"], scale=tensors["scale"], bits=metadata["bits"])


class TunableCentred(nn.Module):
    """The tunable form of a `CentredLinear`: steps `2 code - top` of `scale / top`."""

    def __init__(self, layer: CentredLinear, *, rounding: bool):
        super().__init__()
        self.layer = layer
        self.top = 2**layer.bits - 1
        self.scale_change = nn.Parameter(torch.zeros_like(layer.scale, dtype=torch.float32))
        codes = torch.zeros_like(layer.codes, dtype=torch.float32)
        self.code_change = nn.Parameter(codes) if rounding else None
        steps = 2 * layer.codes.to(torch.int16) - self.top
        self._steps = steps if layer.bits == 8 else steps.to(torch.int8)

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out m"]:
        """The dense weight, differentiable in the parameters."""
        step = (self._scale() / self.top).expand(len(self._steps)).unsqueeze(1)
        if self.code_change is None:
            return scaled(self._steps.unsqueeze(1), step, dtype).squeeze(1)
        codes = latent(self.layer.codes, self.code_change).unsqueeze(1)
        return scaled_rounded(codes, 2 * step, self.top / 2, self.top, dtype).squeeze(1)

    @torch.no_grad()
    def hardened(self) -> CentredLinear:
        """The layer with the tuned scales and codes."""
        codes = hardened_codes(self.layer.codes, self.code_change, self.top)
        return replace(self.layer.with_scale(self._scale()), codes=codes)

    def _scale(self) -> Float[Tensor, " scales"]:
        return self.layer.scale.float() * (1 + self.scale_change)
