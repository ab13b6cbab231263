"""Options and storage that the methods on a uniform grid have in common."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, UInt8
from torch import Tensor

from q2n.errors import InputError
from q2n.grids.granularity import Granularity, PerChannel, PerGroup
from q2n.grids.scale_zero_search import GROUP_STEPS, ROW_STEPS, ScaleZeroGrid
from q2n.grids.uniform import BITS, UniformGrid
from q2n.layers.quantized import StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.method import LayerProblem, Method


@dataclass(frozen=True, kw_only=True)
class UniformMethod(Method):
    """A method that stores `scale * (code - zero)`."""

    bits_offered: ClassVar[str] = ", ".join(map(str, BITS))

    bits: int = 4
    """2, 3, 4 or 8."""
    group_size: int = -1
    """Columns that share a scale; -1: one scale a row."""
    ragged_groups: bool = False
    """Allow a shorter last group where the group size does not divide the columns."""
    symmetric: bool = False
    """Zero point in the middle, not stored."""
    search: Literal["none", "range", "tuned"] = "none"
    """Search each group's grid for the least |error|^2.4: none, from min to max; range, both ends
    shrunk alike; tuned, every zero point with many scales, as OWQ does."""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"bits must be one of {BITS}, got {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise InputError(f"group_size must be -1 or at least 1, got {self.group_size}")

    @property
    def granularity(self) -> Granularity:
        """Which weights share a scale."""
        if self.group_size == -1:
            return PerChannel()
        return PerGroup(self.group_size, self.ragged_groups)

    @property
    def grid(self) -> UniformGrid:
        """The grid that the options describe."""
        steps = ROW_STEPS if self.group_size == -1 else GROUP_STEPS
        return self._searched(self.granularity, steps)

    @property
    def storage(self) -> StorageSpec:
        return UniformStorage(bits=self.bits, group_size=self.group_size)

    def _searched(self, granularity: Granularity, steps: int) -> UniformGrid:
        """The grid with this granularity; `steps` scales are tried if it is tuned."""
        bits, even = self.bits, self.symmetric
        if self.search == "tuned":
            return ScaleZeroGrid(bits=bits, symmetric=even, granularity=granularity, steps=steps)
        clip: Literal["none", "mse"] = "mse" if self.search == "range" else "none"
        return UniformGrid(bits=bits, symmetric=even, granularity=granularity, clip=clip)

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
