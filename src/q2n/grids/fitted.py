"""Grids fitted to one weight, in the form that methods take: a rule for the sweep, and the way from
codes to the layer. The named ones are LDLQ's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from q2n.block_types import BlockType
from q2n.grids import gaussian_range
from q2n.grids.blocks import fit_blocks
from q2n.grids.uniform import UniformGrid, rounded_scale
from q2n.kernels.rounding_rules import BlockRule, CodebookRule, Rule, UniformRule, midpoints
from q2n.kernels.trellis_search import TrellisRule
from q2n.layers.blocks import BlockLinear
from q2n.layers.centred import CentredLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.linalg import lloyd_max, trellis_code
from q2n.linalg.groups import group_of_column

GridName = Literal["uniform", "lloyd-max", "trellis", "minmax"]


Layer = TypeVar("Layer", bound=QuantizedLinear, covariant=True)


@dataclass(frozen=True, eq=False)
class FittedGrid(Generic[Layer]):
    """A grid fitted to one weight."""

    weight: Float[Tensor, "out in"]
    """The weight in the coordinates of the rule."""
    rule: Rule
    stored: Callable[[UInt8[Tensor, "out in"]], Layer]
    """Makes the layer that has these codes."""
    shift: Float[Tensor, "1"] | float = 0.0
    """What the coordinates of the rule add to the layer's."""
    times: "Callable[[float], FittedGrid[Layer]] | None" = None
    """The same grid with all its points times a factor, where scales are free to be."""

    def nearest(self) -> Layer:
        """The layer of the nearest codes."""
        codes, _ = self.rule.nearest(self.weight.T)
        return self.stored(codes.T.to(torch.uint8))

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
) -> FittedGrid[QuantizedLinear]:
    """A grid fitted to the weight of the layer `name`, with scales of `dtype`. `clip_sigma` and
    `clamp_first` are for the `uniform` grid (`_uniform`).

    Raises:
        NumericalError: weights that are not finite, or a scale that overflows `dtype`.
    """
    if grid == "minmax":
        return uniform_grid(UniformGrid(bits=bits), weight, dtype, name)
    if grid == "uniform":
        return _uniform(weight, bits, dtype, name, clip_sigma, clamp_first)
    fitted = _trellis if _has_trellis(grid, bits) else _lloyd_max
    return fitted(weight, bits, dtype, name)


def uniform_grid(
    grid: UniformGrid, weight: Float[Tensor, "out in"], dtype: torch.dtype, name: str
) -> FittedGrid[UniformLinear]:
    """A uniform grid with a scale of `dtype` per row or group. Raises as `UniformGrid.fit`."""
    return _of_parameters(grid, weight, *grid.fit(weight, dtype, name), dtype, name)


def grid_of(layer: QuantizedLinear, weight: Float[Tensor, "out in"]) -> FittedGrid[QuantizedLinear]:
    """The grid on which a uniform layer or one of blocks lies, to round `weight` to."""
    if isinstance(layer, BlockLinear):
        return _of_frame(layer.type, weight, layer)
    assert isinstance(layer, UniformLinear), f"{layer.kind} has no grid to be rounded to again"
    group = group_of_column(weight.shape[1], layer.group_size, weight.device)
    rule = uniform_rule(layer.scale, layer.zero, group, layer.bits, weight.dtype)
    return FittedGrid(weight, rule, lambda codes: replace(layer, codes=codes.contiguous()))


def _of_parameters(
    grid: UniformGrid,
    weight: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    zero: UInt8[Tensor, "out groups"],
    dtype: torch.dtype,
    name: str,
) -> FittedGrid[UniformLinear]:
    size = grid.granularity.group_size(weight.shape[1], name)
    group = group_of_column(weight.shape[1], size, weight.device)
    rule = uniform_rule(scale, zero, group, grid.bits, weight.dtype)

    def stored(codes: UInt8[Tensor, "out in"]) -> UniformLinear:
        return UniformLinear(
            codes=codes.contiguous(),
            scale=rule.scale.T.to(dtype).contiguous(),  # a sweep may have fitted groups anew
            zero=rule.zero.T.contiguous(),
            bits=grid.bits,
            group_size=size,
            symmetric=grid.symmetric,
        )

    def times(factor: float) -> FittedGrid[UniformLinear]:
        scaled = rounded_scale(scale.float() * factor, dtype, name)
        return _of_parameters(grid, weight, scaled, zero, dtype, name)

    return FittedGrid(weight, rule, stored, times=times)


def block_grid(
    kind: BlockType,
    weight: Float[Tensor, "out in"],
    energy: Float[Tensor, " in"] | None,
    name: str,
) -> FittedGrid[BlockLinear]:
    """A grid of ggml's blocks. Raises as `fit_blocks`."""
    return _of_frame(kind, weight, fit_blocks(kind, weight, energy, name))


def _of_frame(
    kind: BlockType, weight: Float[Tensor, "out in"], frame: BlockLinear
) -> FittedGrid[BlockLinear]:
    step, minimum = frame.steps().T.to(weight).contiguous(), frame.minima()
    levels = torch.tensor(kind.levels).to(weight)
    rule = BlockRule(
        step,
        torch.where(step == 0, 0, 1 / step),
        torch.zeros_like(step) if minimum is None else minimum.T.to(weight).contiguous(),
        group_of_column(weight.shape[1], kind.block, weight.device),
        levels,
        midpoints(levels),
    )

    def times(factor: float) -> FittedGrid[BlockLinear]:
        return _of_frame(kind, weight, frame.scale_rows(weight.new_full((len(weight),), factor)))

    return FittedGrid(
        weight, rule, lambda codes: replace(frame, codes=codes.contiguous()), times=times
    )


def _uniform(
    weight: Float[Tensor, "out in"],
    bits: int,
    dtype: torch.dtype,
    name: str,
    clip_sigma: float | None,
    clamp_first: bool,
) -> FittedGrid[QuantizedLinear]:
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
    group = torch.zeros(weight.shape[1], dtype=torch.int64, device=weight.device)
    return FittedGrid(
        weight + end,
        uniform_rule(step, zero, group, bits, weight.dtype),
        lambda codes: CentredLinear(codes=codes, scale=scale, bits=bits),
        shift=end,
    )


def _has_trellis(grid: GridName, bits: int) -> bool:
    """At 8 bits there is no trellis code: Lloyd-Max levels are as good."""
    return grid == "trellis" and bits in trellis_code.DIGITS


def _lloyd_max(
    weight: Float[Tensor, "out in"], bits: int, dtype: torch.dtype, name: str
) -> FittedGrid[QuantizedLinear]:
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
) -> FittedGrid[QuantizedLinear]:
    scale = gaussian_range.fit(weight, 1.0, dtype, name)
    return FittedGrid(
        weight,
        TrellisRule(trellis_code.values(bits).to(weight) * scale.to(weight), bits),
        lambda codes: TrellisLinear(codes=codes, scale=scale, bits=bits),
    )


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
