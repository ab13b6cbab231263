"""What methods with a scale per row, group or block have in common: options, grid, storage.

Beside the uniform grids there are those of ggml's blocks (grids/blocks.py), which choose their
scales by themselves: of the options only `grid` counts then.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from q2n.block_types import BLOCK_TYPES, BlockType, BlockTypeName, fitting
from q2n.errors import InputError
from q2n.grids.fitted import FittedGrid, block_grid, uniform_grid
from q2n.grids.granularity import Granularity, granularity_of
from q2n.grids.learned_range import clipped
from q2n.grids.scale_zero_search import GROUP_STEPS, ROW_STEPS, ScaleZeroGrid
from q2n.grids.signed import SignedGrid
from q2n.grids.uniform import UniformGrid
from q2n.layers.blocks import BlockStorage
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformStorage
from q2n.method import LayerProblem, Method, Work
from q2n.option_types import GroupSize, WideBits


@dataclass(frozen=True, kw_only=True)
class UniformMethod(Method):
    """A method that stores `scale * (code - zero)`."""

    bits_offered: ClassVar[str] = ", ".join(map(str, get_args(WideBits)))

    bits: WideBits = 4
    """Bits of a code. A grid of blocks has its own: leave it out."""
    group_size: GroupSize = -1
    """Columns that share a scale; -1: one scale per row."""
    ragged_groups: bool = False
    """Allow a shorter last group where the group size does not divide the columns."""
    symmetric: bool = False
    """Zero point in the middle, not stored."""
    grid: Literal["uniform", "signed", BlockTypeName] = "uniform"
    """uniform: the range of the weights in 2^bits - 1 steps; signed (symmetric only): the largest
    weight on the largest signed code, as QuaRot; q2_0 .. q8_0: the blocks of llama.cpp, for
    --format gguf."""
    clip: Literal["minmax", "mse", "scale_zero", "learned"] = "minmax"
    """Range of each group: minmax, from the least to the largest weight; mse, both ends shrunk
    alike for the least sum of |error|^2.4; scale_zero, scale and zero point searched for it, as
    OWQ; learned (rtn and gptq alone), both ends by gradient steps on the output of the block, as
    OmniQuant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid in BLOCK_TYPES:
            self._require_block_options()
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
        if self.grid != "uniform" and self.grid != "signed":  # a membership test narrows no type
            return BlockStorage(block_type=self.grid)
        return UniformStorage(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric)

    @property
    def work(self) -> Work:
        """With the search for each group's scale."""
        searched = {"minmax": 0.0, "mse": 30000.0, "scale_zero": 10000.0, "learned": 0.0}
        if self.group_size == -1:  # more steps (grids/scale_zero_search.py)
            searched["scale_zero"] = 15000.0
        return super().work + Work(weight=searched[self.clip])

    def grid_with(self, granularity: Granularity, steps: int) -> UniformGrid:
        """The grid with another granularity; `steps` scales are tried if clip is scale_zero."""
        bits, even = self.bits, self.symmetric
        if self.clip == "scale_zero":
            return ScaleZeroGrid(bits=bits, symmetric=even, granularity=granularity, steps=steps)
        clip: Literal["minmax", "mse"] = "mse" if self.clip == "mse" else "minmax"
        family = SignedGrid if self.grid == "signed" else UniformGrid
        return family(bits=bits, symmetric=even, granularity=granularity, clip=clip)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        if self.grid in BLOCK_TYPES:
            self._block_type(name, shape[1])
        else:
            self.granularity.group_size(shape[1], name)

    def fit(
        self,
        problem: LayerProblem,
        weight: Float[Tensor, "out in"],
        energy: Float[Tensor, " in"] | None = None,
    ) -> FittedGrid[QuantizedLinear]:
        """The grid fitted to `weight`; where it weighs columns, by the `energy` of their input.

        Raises:
            InputError, NumericalError: as the grid's.
        """
        if self.grid not in BLOCK_TYPES:
            grid = self.fitted_grid
            if self.clip == "learned" and problem.clipping is not None:
                grid = clipped(grid, problem.clipping)
            return uniform_grid(grid, weight, problem.scale_dtype, problem.name)
        kind = self._block_type(problem.name, weight.shape[1])
        blocks = block_grid(kind, weight, energy, problem.name)
        if kind is BLOCK_TYPES[self.grid]:
            return blocks
        return replace(
            blocks, stored=lambda x: blocks.stored(x).with_record(fell_back_on=kind.name)
        )

    def _block_type(self, name: str, columns: int) -> BlockType:
        kind = fitting(self.grid, columns)
        if kind is None:
            raise InputError(
                f"{name} has {columns} inputs, and {self.grid} has blocks of "
                f"{BLOCK_TYPES[self.grid].super_block} (llama.cpp's smallest have 32); leave all "
                f"layers of this name in full precision: --ignore {name.rpartition('.')[2]}"
            )
        return kind

    def _require_block_options(self) -> None:
        bits = BLOCK_TYPES[self.grid].bits
        if self.bits != bits:
            raise InputError(f"codes of {self.grid} have {bits} bits, not {self.bits}")
        if self.group_size != -1 or self.ragged_groups or self.symmetric:
            raise InputError(
                f"blocks of {self.grid} have their own groups and zero points: leave out "
                "group_size, ragged_groups and symmetric"
            )
