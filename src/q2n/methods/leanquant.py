r"""LeanQuant (Zhang and Shrivastava 2024): GPTQ on a grid that is made for its loss.

GPTQ pays `((w' - q) / U_jj)^2` for rounding column j (linalg/factor.py), so a column with a
small `U_jj` should meet a near grid point and one with a large `U_jj` need not. The grid of a row
is the one with little `sum_j omega_j (w_j - q_j)^2`, `omega_j = U_jj^-p`: p = 2 is GPTQ's own
price, larger exponents p spare the dearest columns more. It is found on the original weights
and frozen; then the sweep rounds as in GPTQ.

- `codebook`: any `2^b` values per row, by weighted k-means (linalg/kmeans.py);
- `uniform`: a uniform grid per row or group, by a search of its range (grids/weighted_range.py).

Dead columns (input always 0) take part in no feedback, as in GPTQ, and weigh as little in the
choice of the grid as the other column that weighs least.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.grids.fitted import uniform_rule
from q2n.grids.granularity import granularity_of
from q2n.grids.uniform import UniformGrid, stored_numbers
from q2n.grids.weighted_range import fit_weighted
from q2n.kernels.column_sweep import sweep
from q2n.kernels.rounding_rules import CodebookRule, Rule
from q2n.layers.codebook import CodebookLinear
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.layers.uniform import UniformLinear, UniformStorage
from q2n.linalg.factor import Feedback, compensated
from q2n.linalg.groups import group_of_column
from q2n.linalg.kmeans import row_kmeans
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Method, Work, shared_feedback
from q2n.option_types import Bits, Count, GroupSize, NonNegative


@dataclass(frozen=True, kw_only=True)
class LeanQuant(Method):
    """GPTQ on a codebook or uniform grid that spares the columns where errors cost most."""

    name: ClassVar[str] = "leanquant"
    strategy: ClassVar[str] = "compensation"

    bits: Bits = 4
    """Bits per weight: 2, 3, 4 or 8."""
    levels: Literal["codebook", "uniform"] = "codebook"
    """What is stored: 2^bits free values per row, or a uniform grid."""
    group_size: GroupSize = -1
    """Columns that share a scale; -1: one scale per row."""
    exponent: NonNegative = 4.0
    """p of the weight U_jj^-p that a column has in the choice of the grid."""
    act_order: bool = True
    """Visit the columns with the largest input first."""
    damping: NonNegative = 0.1
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    block_size: Count = 128
    """Columns between two matrix products. Changes speed and rounding noise alone, and the
    borders at which the compensated weight is taken (every 128 in the released code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels == "codebook" and self.group_size != -1:
            raise InputError(
                f"group_size {self.group_size} is for the uniform grid: a codebook belongs to a "
                "whole row; use --levels uniform, or --group-size -1"
            )

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM

    @property
    def work(self) -> Work:
        """With k-means of each row."""
        return super().work + Work(weight=4500.0 * self.bits)

    @property
    def storage(self) -> StorageSpec:
        if self.levels == "uniform":
            return UniformStorage(bits=self.bits, group_size=self.group_size)
        return StorageSpec(kind=CodebookLinear.kind)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        self._uniform_grid().granularity.group_size(shape[1], name)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        back = shared_feedback(problem, self.damping, descending=self.act_order)
        cost = back.importance  # 1 / U_jj
        importance = (cost / cost.max()) ** self.exponent
        fit = self._uniform if self.levels == "uniform" else self._codebook
        layer = fit(problem, problem.weight, importance, back)
        return layer.with_record(**back.record)

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        back = shared_feedback(problem, self.damping, descending=self.act_order)
        return compensated(problem.weight, quantized, back, self.block_size)

    def _codebook(
        self,
        problem: LayerProblem,
        weight: Float[Tensor, "out in"],
        importance: Float[Tensor, " in"],
        back: Feedback,
    ) -> CodebookLinear:
        centroids = row_kmeans(weight, importance, 2**self.bits, problem.seed)
        codebook = stored_numbers(centroids, problem.scale_dtype, problem.name)
        rule = CodebookRule(codebook.T.to(weight.dtype).contiguous())
        codes = self._codes(weight, rule, back)
        return CodebookLinear(codes=codes, codebook=codebook, bits=self.bits)

    def _uniform(
        self,
        problem: LayerProblem,
        weight: Float[Tensor, "out in"],
        importance: Float[Tensor, " in"],
        back: Feedback,
    ) -> UniformLinear:
        grid, m = self._uniform_grid(), weight.shape[1]
        scale, zero = fit_weighted(grid, weight, importance, problem.scale_dtype, problem.name)
        size = grid.granularity.group_size(m, problem.name)
        group = group_of_column(m, size, weight.device)[back.order]
        rule = uniform_rule(scale, zero, group, self.bits, weight.dtype)
        return UniformLinear(
            codes=self._codes(weight, rule, back),
            scale=scale,
            zero=zero,
            bits=self.bits,
            group_size=size,
            symmetric=False,
        )

    def _codes(self, weight: Float[Tensor, "out in"], rule: Rule, back: Feedback) -> Tensor:
        rounded = sweep(weight.T[back.order], back.matrix, rule, block_size=self.block_size)
        return rounded.layer_codes(back.order, weight.shape[1])

    def _uniform_grid(self) -> UniformGrid:
        return UniformGrid(bits=self.bits, granularity=granularity_of(self.group_size))
