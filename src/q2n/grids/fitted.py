"""The grids of LDLQ, each fitted to one weight and turned into the rule that the sweep takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.grids import gaussian_range
from q2n.grids.uniform import UniformGrid
from q2n.kernels.column_rounding import CodebookRule, Rule, UniformRule
from q2n.kernels.trellis_search import TrellisRule
from q2n.layers.centred import CentredLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.linalg import lloyd_max, trellis_code

GridName = Literal["uniform", "lloyd-max", "trellis", "minmax"]


@dataclass(frozen=True, eq=False)
class FittedGrid:
    """A grid fitted to one weight."""

    weight: Float[Tensor, "out in"]
    """The weight in the coordinates of the rule."""
    rule: Rule
    stored: Callable[[UInt8[Tensor, "out in"]], QuantizedLinear]
    """Makes the layer that has these codes."""
    shift: Float[Tensor, "1"] | float = 0.0
    """What the coordinates of the rule add to the layer's."""

    @property
    def rounded_weight(self) -> Float[Tensor, "out in"]:
        """The weight that is rounded, in the layer's coordinates: what was fitted to, clamped if
        the grid says so."""
        return self.weight - self.shift


def storage(grid: GridName, bits: int) -> StorageSpec:
    """What a layer with this grid stores."""
    if grid == "minmax":
        return UniformStorage(bits=bits, group_size=-1)
    if grid == "uniform":
        return StorageSpec(kind=CentredLinear.kind)
    return StorageSpec(kind=(TrellisLinear if _has_trellis(grid, bits) else LloydMaxLinear).kind)


def fit(
    grid: GridName,
    weight: Float[Tensor, "out in"],
    bits: int,
    dtype: torch.dtype,
    name: str,
    *,
    clip_sigma: float | None = None,
    clamp_first: bool = False,
) -> FittedGrid:
    """A grid fitted to the weight of the layer `name`, with scales of `dtype`. `clip_sigma` and
    `clamp_first` are for the `uniform` grid (`_uniform`).

    Raises:
        NumericalError: weights that are not finite, or a scale that overflows `dtype`.
    """
    if grid == "minmax":
        return _minmax(weight, bits, dtype, name)
    if grid == "uniform":
        return _uniform(weight, bits, dtype, name, clip_sigma, clamp_first)
    fitted = _trellis if _has_trellis(grid, bits) else _lloyd_max
    return fitted(weight, bits, dtype, name)


def _uniform(
    weight: Float[Tensor, "out in"],
    bits: int,
    dtype: torch.dtype,
    name: str,
    clip_sigma: float | None,
    clamp_first: bool,
) -> FittedGrid:
    """The `uniform` grid: evenly spaced levels over [-S, S], where S is `clip_sigma` root mean
    squares (None: the best for Gaussian weights). The weight is moved up by S, so that code 0 means
    0; `clamp_first` clamps it to [-S, S] before."""
    best = gaussian_range.BEST_CLIP_SIGMA[bits]
    scale = gaussian_range.fit(weight, best if clip_sigma is None else clip_sigma, dtype, name)
    end = scale.to(weight)
    if clamp_first:
        weight = weight.clamp(-end, end)
    step = (2 * end / (2**bits - 1)).expand(len(weight), 1)
    zero = torch.zeros_like(step, dtype=torch.uint8)
    return FittedGrid(
        weight + end,
        _one_group(step, zero, weight, bits),
        lambda codes: CentredLinear(codes=codes, scale=scale, bits=bits),
        shift=end,
    )


def _has_trellis(grid: GridName, bits: int) -> bool:
    """At 8 bits there is no trellis code: Lloyd-Max levels are as good."""
    return grid == "trellis" and bits in trellis_code.DIGITS


def _lloyd_max(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    scale = gaussian_range.fit(weight, lloyd_max.outermost(bits), dtype, name)
    stored = partial(LloydMaxLinear, scale=scale, bits=bits)
    every = torch.arange(2**bits, dtype=torch.uint8, device=weight.device).unsqueeze(0)
    entries = stored(codes=every).dequantize().T.to(weight)
    return FittedGrid(
        weight,
        CodebookRule(entries.expand(-1, len(weight)).contiguous()),
        lambda codes: stored(codes=codes),
    )


def _trellis(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    scale = gaussian_range.fit(weight, 1.0, dtype, name)
    return FittedGrid(
        weight,
        TrellisRule(trellis_code.values(bits).to(weight) * scale.to(weight), bits),
        lambda codes: TrellisLinear(codes=codes, scale=scale, bits=bits),
    )


def _minmax(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    scale, zero = UniformGrid(bits=bits).fit(weight, dtype, name)
    return FittedGrid(
        weight,
        _one_group(scale, zero, weight, bits),
        lambda codes: UniformLinear(
            codes=codes,
            scale=scale,
            zero=zero,
            bits=bits,
            group_size=weight.shape[1],
            symmetric=False,
        ),
    )


def _one_group(
    scale: Float[Tensor, "out 1"],
    zero: UInt8[Tensor, "out 1"],
    weight: Float[Tensor, "out in"],
    bits: int,
) -> UniformRule:
    group = torch.zeros(weight.shape[1], dtype=torch.int64, device=scale.device)
    return uniform_rule(scale, zero, group, bits, weight.dtype)


def uniform_rule(
    scale: Float[Tensor, "out groups"],
    zero: UInt8[Tensor, "out groups"],
    group: Int[Tensor, " visited"],
    bits: int,
    dtype: torch.dtype,
) -> UniformRule:
    """The rule of a uniform grid: transposed, with scales in the dtype of the weight. `group` is
    the group of each column in visiting order."""
    return UniformRule(scale.T.to(dtype).contiguous(), zero.T.contiguous(), group, 2**bits - 1)
