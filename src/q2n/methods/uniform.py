"""Options and storage that the methods on a uniform grid have in common."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.errors import InputError
from q2n.grids.granularity import Granularity, granularity_of
from q2n.grids.scale_zero_search import GROUP_STEPS, ROW_STEPS, ScaleZeroGrid
from q2n.grids.signed import SignedGrid
from q2n.grids.uniform import UniformGrid
from q2n.layers.quantized import StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.method import LayerProblem, Method
from q2n.option_types import Bits, GroupSize


@dataclass(frozen=True, kw_only=True)
class UniformMethod(Method):
    """A method that stores `scale * (code - zero)`."""

    bits: Bits = 4
    """Bits per weight: 2, 3, 4 or 8."""
    group_size: GroupSize = -1
    """Columns that share a scale; -1: one scale per row."""
    ragged_groups: bool = False
    """Allow a shorter last group where the group size does not divide the columns."""
    symmetric: bool = False
    """Zero point in the middle, not stored."""
    grid: Literal["uniform", "signed"] = "uniform"
    """uniform: the range of the weights in 2^bits - 1 steps; signed (symmetric only): the largest
    weight on the largest signed code, as QuaRot."""
    clip: Literal["minmax", "mse", "scale_zero"] = "minmax"
    """Range of each group: minmax, from the least to the largest weight; mse, both ends shrunk
    alike for the least sum of |error|^2.4; scale_zero, scale and zero point searched for it, as
    OWQ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid == "signed" and not self.symmetric:
            raise InputError("a signed grid has no zero point: with --grid signed use --symmetric")
        if self.grid == "signed" and self.clip == "scale_zero":
            raise InputError("a signed grid has no zero point to search: use --clip mse")

    @property
    def granularity(self) -> Granularity:
        """Which weights share a scale."""
        return granularity_of(self.group_size, ragged=self.ragged_groups)

    @property
    def fitted_grid(self) -> UniformGrid:
        """The grid that the options describe."""
        steps = ROW_STEPS if self.group_size == -1 else GROUP_STEPS
        return self.grid_with(self.granularity, steps)

    @property
    def storage(self) -> StorageSpec:
        return UniformStorage(bits=self.bits, group_size=self.group_size)

    def grid_with(self, granularity: Granularity, steps: int) -> UniformGrid:
        """The grid with another granularity; `steps` scales are tried if clip is scale_zero."""
        bits, even = self.bits, self.symmetric
        if self.clip == "scale_zero":
            return ScaleZeroGrid(bits=bits, symmetric=even, granularity=granularity, steps=steps)
        family = SignedGrid if self.grid == "signed" else UniformGrid
        return family(bits=bits, symmetric=even, granularity=granularity, clip=self.clip)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        self.granularity.group_size(shape[1], name)

    def stored(
        self,
        problem: LayerProblem,
        codes: UInt8[Tensor, "out in"],
        scale: Float[Tensor, "out groups"],
        zero: UInt8[Tensor, "out groups"],
    ) -> UniformLinear:
        """The layer as it is stored, its columns in the layer's own order."""
        size = self.granularity.group_size(codes.shape[1], problem.name)
        return UniformLinear(
            codes=codes.contiguous(),
            scale=scale.contiguous(),
            zero=zero.contiguous(),
            bits=self.bits,
            group_size=size,
            symmetric=self.symmetric,
        )
