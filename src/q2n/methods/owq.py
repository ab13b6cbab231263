r"""OWQ (Lee et al. 2024): a few weak columns stay in 16 bits, GPTQ rounds the others.

- *Weak* are the columns where rounding would cost most: with G the input's Gram matrix and
  R(W) the layer rounded to nearest, a column's sensitivity is `G_jj |W_j - R(W)_j|^2`.
- The grid is fitted to the other columns alone, scale and zero point searched
  (grids/scale_zero_search.py): without the outliers the range is narrow.
- GPTQ's sweep visits the others first. Weak columns come last, so they take up what the
  rounding of all others did to the output, and are stored as it left them: the least
  squares solution, given the others.

Dead columns (input always 0) are never weak and take part in no feedback, as in GPTQ.

How many. A weak column costs 16 - b bits more per weight. To spend `t - b` bits per weight
(`target_bits` t), with `u = (t - b) / (16 - b)`:

- `split="layer"`: `m u` of the m columns, in every layer;
- `split="published"`: each of the L layers of a block receives an equal number of extra bits,
  counted for a block of 12 d^2 weights with d x d attention matrices. With d x m that is
  `12 u m / L`, for an MLP of width 8 d / 3 times 0.375 (up and gate have more rows to pay for,
  down has more columns), then one more if odd.

Neither counts scales and zero points, and what comes out is not exactly t where layers have other
shapes (k and v under grouped-query attention) or few columns. In the record, `weight_bits` is
what a layer's weights cost; `bits_per_weight` has everything. Figures: docs/mathematics.md.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from q2n.errors import InputError, NumericalError
from q2n.grids.fitted import uniform_grid
from q2n.grids.granularity import PerChannel
from q2n.grids.scale_zero_search import GROUP_STEPS
from q2n.kernels.column_sweep import sweep
from q2n.layers.outliers import OutlierLinear
from q2n.layers.quantized import StorageSpec, without_columns
from q2n.linalg.factor import Feedback, compensated, feedback, pending
from q2n.linalg.finite import all_finite
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Work
from q2n.methods.uniform import UniformMethod
from q2n.option_types import (
    Count,
    CountOrZero,
    NonNegative,
    Patterns,
    Range,
    ShareAboveZero,
)
from q2n.patterns import matches

_PUBLISHED_WEIGHTS = 12
"""Weights of a block, in d^2."""


@dataclass(frozen=True, kw_only=True)
class OWQ(UniformMethod):
    """GPTQ with a searched grid and the most sensitive columns in 16 bits."""

    name: ClassVar[str] = "owq"
    strategy: ClassVar[str] = "salience"

    grid: Literal["uniform", "signed"] = "uniform"
    """As GPTQ's; ggml's blocks have no place for columns in 16 bits."""
    clip: Literal["minmax", "mse", "scale_zero"] = "scale_zero"
    target_bits: Annotated[float, Range(low=2, high=16, open_high=True)] | None = None
    """Bits per weight to spend, outliers included, scales not: 3.01 with 3 bits. Without
    target_bits and target_rank there are no outliers."""
    target_rank: CountOrZero | None = None
    """Columns of each layer to keep in 16 bits."""
    split: Literal["published", "layer"] = "published"
    """How layers share target_bits: OWQ's formula, or each layer by itself."""
    layers_per_block: Count = 7
    """Layers among which OWQ's formula shares the extra bits of a block."""
    narrow_layers: Patterns = ("*.mlp.*",)
    """Patterns of names of layers that receive narrow_ratio of what the others do in OWQ's
    formula."""
    narrow_ratio: ShareAboveZero = 0.375
    """Width of the model over that of its MLP: 0.375 for LLaMA, 0.25 for OPT."""
    outlier_layers: Patterns = ("*",)
    """Patterns of names of layers that have outliers."""
    sensitivity: Literal["error", "input"] = "error"
    """Which columns are weak: by input energy times rounding error, or by input energy alone."""
    act_order: bool = True
    """Visit the most sensitive of the other columns first; the released code does on request."""
    damping: NonNegative = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    block_size: Count = 128
    """Columns between two matrix products."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_bits is not None and self.target_rank is not None:
            raise InputError("target_bits and target_rank say the same thing: give one of them")
        if self.target_bits is not None and not self.bits <= self.target_bits < 16:
            raise InputError(
                f"target_bits must be at least bits ({self.bits}) and below 16, got "
                f"{self.target_bits}; lower bits or raise target_bits"
            )

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM

    @property
    def storage(self) -> StorageSpec:
        return StorageSpec(kind=OutlierLinear.kind)

    @property
    def work(self) -> Work:
        """A factor for each layer, whose columns have an order of their own; a second, coarse
        search."""
        return replace(super().work, site=0.0, alone=0.6) + Work(weight=6000.0)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        super().check(name, shape)
        self.outliers(name, shape[1])

    def outliers(self, name: str, columns: int) -> int:
        """How many of its columns a layer keeps in 16 bits.

        Raises:
            InputError: more than it has.
        """
        count = self._outlier_count(name, columns) if _any(self.outlier_layers, name) else 0
        if count >= columns:
            raise InputError(
                f"{name}: {count} columns in 16 bits leave nothing to quantize of its {columns}; "
                "lower target_rank or target_bits"
            )
        return count

    def quantize(self, problem: LayerProblem) -> OutlierLinear:
        weight = problem.weight
        rows, m = weight.shape
        weak, others = self._columns(problem, weight)
        back = self._feedback(problem, weak, others)
        fitted = uniform_grid(
            self.fitted_grid, without_columns(weight, weak), problem.scale_dtype, problem.name
        )
        ordered, last = weight.T[back.order], len(others)
        rounded = sweep(
            ordered[:last],
            back.matrix[:last, :last],
            fitted.rule.in_order(others),
            block_size=self.block_size,
        )
        codes = rounded.layer_codes(others, m)
        values = pending(ordered, rounded.error, back.matrix, last, m).T
        layer = OutlierLinear.of(fitted.stored(codes), weak, values).with_record(
            **back.record,
            weak_columns=len(weak),
            weight_bits=self.bits + (16 - self.bits) * len(weak) / m,
        )
        if not all_finite(layer.values):
            raise NumericalError(
                f"{problem.name}: a weight of {float(values.abs().max()):.3g} in a weak column "
                f"overflows {layer.values.dtype}; store the checkpoint in bfloat16"
            )
        return layer

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        back = self._feedback(problem, *self._columns(problem, problem.weight))
        return compensated(problem.weight, quantized, back, self.block_size)

    def _feedback(
        self, problem: LayerProblem, weak: Int[Tensor, " k"], others: Int[Tensor, " rest"]
    ) -> Feedback:
        order = torch.cat([others, weak])
        return feedback(problem.measured.gram, self.damping, order=order, name=problem.name)

    def _columns(
        self, problem: LayerProblem, weight: Float[Tensor, "out in"]
    ) -> tuple[Int[Tensor, " k"], Int[Tensor, " rest"]]:
        """Weak columns, the most sensitive first, and the others in visiting order. Dead columns
        come last of all and are never weak."""
        dead = problem.measured.gram.diagonal() == 0
        count = min(self.outliers(problem.name, weight.shape[1]), int((~dead).sum()))
        sensitivity = self._sensitivities(problem, weight).masked_fill(dead, -1)
        descending = sensitivity.argsort(descending=True, stable=True)
        weak, others = descending[:count], descending[count:]
        return weak, others if self.act_order else others.sort().values

    def _sensitivities(
        self, problem: LayerProblem, weight: Float[Tensor, "out in"]
    ) -> Float[Tensor, " in"]:
        energy = problem.measured.gram.diagonal()
        if self.sensitivity == "input":
            return energy
        grid = self.grid_with(PerChannel(), GROUP_STEPS)  # a coarse search does for a ranking
        scale, zero = grid.fit(weight, problem.scale_dtype, problem.name)
        codes = grid.encode(weight, scale, zero)
        rounded = scale.to(weight.dtype) * (codes.to(weight.dtype) - zero)
        return energy * (weight - rounded).square().sum(0)

    def _outlier_count(self, name: str, columns: int) -> int:
        if self.target_bits is None:
            return self.target_rank or 0
        share = (self.target_bits - self.bits) / (16 - self.bits)
        if self.split == "layer":
            return round(columns * share)
        ratio = self.narrow_ratio if _any(self.narrow_layers, name) else 1.0
        count = round(columns * _PUBLISHED_WEIGHTS * share / self.layers_per_block * ratio)
        return count + count % 2


def _any(patterns: Patterns, name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)
