"""The grids of LDLQ, each fitted to a weight and in the form that the sweep takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.grids import gaussian_range
from q2n.grids.uniform import UniformGrid
from q2n.kernels.column_rounding import Affine, Codebook, RoundBlock, Rule
from q2n.kernels.trellis_search import Trellis, round_to_trellis
from q2n.layers.centred import CentredLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.linalg import lloyd_max, trellis_code

GridName = Literal["b", "lloyd-max", "trellis", "minmax"]


@dataclass(frozen=True, eq=False)
class FittedGrid:
    """A grid for one weight."""

    weight: Float[Tensor, "out in"]
    """The weight in the coordinates of the rule."""
    rule: Rule
    stored: Callable[[UInt8[Tensor, "out in"]], QuantizedLinear]
    """The layer with these codes."""
    round_block: RoundBlock | None = None
    """What rounds to this rule; None: what rounds one weight by itself."""


def form(grid: GridName, bits: int) -> StorageSpec:
    """What is stored."""
    if grid == "minmax":
        return UniformStorage(bits=bits, group_size=-1)
    if grid == "b":
        return StorageSpec(kind=CentredLinear.kind)
    return StorageSpec(kind=(TrellisLinear if _has_trellis(grid, bits) else LloydMaxLinear).kind)


def fit(
    grid: GridName, weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    """Any but `b`, to the weight of the layer `name`, with scales of `dtype`."""
    if grid == "minmax":
        return _minmax(weight, bits, dtype, name)
    fitted = _trellis if _has_trellis(grid, bits) else _lloyd_max
    return fitted(weight, bits, dtype, name)


def fit_even(
    weight: Float[Tensor, "out in"],
    bits: int,
    dtype: torch.dtype,
    name: str,
    *,
    spread: float | None,
    clamp_first: bool,
) -> FittedGrid:
    """The `b` grid: the levels over [-S, S], moved up by S. Then code 0 is 0."""
    best = gaussian_range.GAUSSIAN_SPREAD[bits]
    scale = gaussian_range.fit(weight, best if spread is None else spread, dtype, name)
    end = scale.to(weight)
    if clamp_first:
        weight = weight.clamp(-end, end)
    step = (2 * end / (2**bits - 1)).expand(1, len(weight)).contiguous()
    zero = torch.zeros_like(step, dtype=torch.uint8)
    return FittedGrid(
        weight + end,
        _one_group(step, zero, weight.shape[1], bits),
        lambda codes: CentredLinear(codes=codes, scale=scale, bits=bits),
    )


def _has_trellis(grid: GridName, bits: int) -> bool:
    """At 8 bits a weight's own levels are as good."""
    return grid == "trellis" and bits in trellis_code.DIGITS


def _lloyd_max(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    scale = gaussian_range.fit(weight, lloyd_max.spread(bits), dtype, name)
    stored = partial(LloydMaxLinear, scale=scale, bits=bits)
    every = torch.arange(2**bits, dtype=torch.uint8, device=weight.device).unsqueeze(0)
    entries = stored(codes=every).dequantize().T.to(weight)
    return FittedGrid(
        weight,
        Codebook(entries.expand(-1, len(weight)).contiguous()),
        lambda codes: stored(codes=codes),
    )


def _trellis(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    scale = gaussian_range.fit(weight, 1.0, dtype, name)
    return FittedGrid(
        weight,
        Trellis(trellis_code.values(bits).to(weight) * scale.to(weight), bits),
        lambda codes: TrellisLinear(codes=codes, scale=scale, bits=bits),
        round_to_trellis,
    )


def _minmax(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid:
    scale, zero = UniformGrid(bits=bits).fit(weight, dtype, name)
    return FittedGrid(
        weight,
        _one_group(scale.T.to(weight).contiguous(), zero.T.contiguous(), weight.shape[1], bits),
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
    scale: Float[Tensor, "1 out"], zero: UInt8[Tensor, "1 out"], columns: int, bits: int
) -> Affine:
    group = torch.zeros(columns, dtype=torch.int64, device=scale.device)
    return Affine(scale, zero, group, 2**bits - 1)
