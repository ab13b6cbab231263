r"""The uniform grid: `w ~ scale * (code - zero)`, codes 0 .. 2^b - 1.

Letters: `b` bits, `s` scale, `z` zero point, `lo`, `hi` the range of a group of weights.

Min-max: `lo = min(0, min w)`, `hi = max(0, max w)` (-1 and 1 if both are 0),
`s = (hi - lo) / (2^b - 1)`, `z = round(-lo / s)`. Symmetric (as GPTQ): the range is made
even, `hi = max(|lo|, hi)` and `lo = -hi`; `z = 2^(b-1)`.
0 is always on the grid. Rounding is half to even.

Clip search (as GPTQ's `mse`): the range is shrunk by p = 1, 0.99, .. 0.21 and the p with the
least `sum |w - quantized|^2.4` in the group is kept; p = 1 is min-max, so it is never worse.

A scale is rounded to the dtype in which it will be stored *before* zero point and codes are
chosen. One that would be rounded to 0 becomes the smallest normal number of that dtype.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.grids.granularity import Granularity, PerChannel
from q2n.linalg.finite import all_finite
from q2n.linalg.groups import whole_and_ragged
from q2n.option_types import WideBits

_CLIP_STEPS, _CLIP_RANGE, _CLIP_POWER = 100, 0.8, 2.4


@dataclass(frozen=True, kw_only=True)
class UniformGrid:
    """A family of uniform grids; `fit` picks one per group of weights."""

    bits: int = 4
    symmetric: bool = False
    granularity: Granularity = PerChannel()
    clip: Literal["minmax", "mse"] = "minmax"

    def __post_init__(self) -> None:
        if self.bits not in get_args(WideBits):
            raise InputError(f"bits must be one of {get_args(WideBits)}, got {self.bits}")

    @property
    def middle(self) -> int:
        """The zero point of symmetric grids."""
        return 2 ** (self.bits - 1)

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def fit(
        self, weight: Float[Tensor, "out in"], dtype: torch.dtype, name: str
    ) -> tuple[Float[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
        """Scales, in the storage dtype `dtype`, and zero points of a layer `name`.

        Raises:
            InputError: the group size does not fit the layer.
            NumericalError: weights that are not finite, or a scale that overflows `dtype`.
        """
        size = self.granularity.group_size(weight.shape[1], name)
        parts = whole_and_ragged(weight, size)
        fitted = [self.fit_groups(part, dtype, name) for part in parts]
        return torch.cat([s for s, _ in fitted], 1), torch.cat([z for _, z in fitted], 1)

    def fit_groups(
        self, values: Float[Tensor, "*groups size"], dtype: torch.dtype, name: str
    ) -> tuple[Float[Tensor, "*groups"], UInt8[Tensor, "*groups"]]:
        """Scale and zero point of every group of values (the last axis). Raises as `fit`."""
        lo, hi = self.range_of(values)
        scale, zero = self.parameters(lo, hi, dtype, name)
        if self.clip == "minmax":
            return scale, zero
        least = self._clip_error(values, scale, zero)
        for shrink in clip_ranges()[1:]:
            tried_scale, tried_zero = self.parameters(shrink * lo, shrink * hi, dtype, name)
            error = self._clip_error(values, tried_scale, tried_zero)
            better = error < least
            scale = torch.where(better, tried_scale, scale)
            zero = torch.where(better, tried_zero, zero)
            least = torch.minimum(error, least)
        return scale, zero

    def encode(
        self,
        weight: Float[Tensor, "*#any"],
        scale: Float[Tensor, "*#any"],
        zero: UInt8[Tensor, "*#any"],
    ) -> UInt8[Tensor, "*#any"]:
        """Codes of the nearest grid points; `scale` and `zero` broadcast with `weight`."""
        code = torch.round(weight / scale.to(weight.dtype)) + zero
        return code.clamp_(0, self.top).to(torch.uint8)

    def range_of(
        self, values: Float[Tensor, "*groups size"]
    ) -> tuple[Float[Tensor, "*groups"], Float[Tensor, "*groups"]]:
        """`lo` and `hi` of every group of values (the last axis). (Of a symmetric group without a
        negative value GPTQ's code leaves `lo` at 0, so that half of its codes lie below all
        values.)"""
        lo, hi = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
        if self.symmetric:
            hi = torch.maximum(-lo, hi)
            lo = -hi
        empty = (lo == 0) & (hi == 0)
        return torch.where(empty, -1.0, lo), torch.where(empty, 1.0, hi)

    def parameters(
        self,
        lo: Float[Tensor, "*groups"],
        hi: Float[Tensor, "*groups"],
        dtype: torch.dtype,
        name: str,
    ) -> tuple[Float[Tensor, "*groups"], UInt8[Tensor, "*groups"]]:
        """Scale and zero point of the grid from `lo` to `hi`. Raises as `fit`."""
        scale = rounded_scale((hi - lo) / self.top, dtype, name)
        if self.symmetric:
            zero = torch.full_like(lo, self.middle)
        else:
            zero = torch.round(-lo / scale.to(lo.dtype)).clamp_(0, self.top)
        return scale, zero.to(torch.uint8)

    def _clip_error(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
        quantized = scale.to(values.dtype) * (self.encode(values, scale, zero).to(values) - zero)
        return (quantized - values).abs_().pow_(_CLIP_POWER).sum(-1)


def clip_ranges() -> list[float]:
    """p of the clip search, from the whole range down."""
    return [1 - step / _CLIP_STEPS for step in range(round(_CLIP_RANGE * _CLIP_STEPS))]


def least_scale(dtype: torch.dtype) -> float:
    """The least number that may be a scale: the smallest normal one, but 6e-8 for float16, whose
    normal numbers end at 6e-5, where scales of 8 bits can lie."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps if dtype is torch.float16 else info.tiny


def rounded_scale(
    exact: Float[Tensor, "*groups"], dtype: torch.dtype, name: str
) -> Float[Tensor, "*groups"]:
    """Scales of a layer `name` in the dtype in which they are stored, at least `least_scale`.

    Raises:
        NumericalError: one is not finite there.
    """
    return stored_numbers(exact, dtype, name).clamp(min=least_scale(dtype))


def stored_numbers(
    exact: Float[Tensor, "*shape"], dtype: torch.dtype, name: str
) -> Float[Tensor, "*shape"]:
    """Scales, means or levels of a layer `name` in the dtype in which they are stored.

    Raises:
        NumericalError: one is not finite there.
    """
    stored = exact.to(dtype)
    if all_finite(stored):
        return stored
    if not all_finite(exact):
        raise NumericalError(f"{name}: its weight holds NaN or infinite values")
    raise NumericalError(
        f"{name}: a scale of {float(exact.abs().max()):.3g} overflows {dtype} "
        f"(largest {torch.finfo(dtype).max:.3g}); store the checkpoint in bfloat16 or float32"
    )
