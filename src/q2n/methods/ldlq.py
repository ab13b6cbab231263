r"""LDLQ (Chee et al. 2023, QuIP): rounding with linear feedback from the Hessian's LDL factor.

Letters: `H` damped Gram matrix of the input (m x m), `W` weight, `Q` its rounded form,
`E = W - Q`.

    H = (L + I) D (L + I)^T,  L strictly lower;   for i = m-1 .. 0:
    Q_i = nearest level to  W_i + sum_{j>i} E_j L_ji.

With the columns in reverse, `L + I` is the unit upper factor `R / diag(R)` of `H = R R^T`
(linalg/factor.py): LDLQ is GPTQ without act-order that visits the columns from the last to the
first. Factor and sweep are GPTQ's. *Sorted* (QuIP's `ldlqRG`): the columns are first put in
ascending order of H_jj, so that those with the largest input are rounded first: act-order.

Coordinate descent may follow (kernels/coordinate_descent.py). With `output_feedback` the rows make
up for each other as well, segment by segment (kernels/row_segments.py).

Unbiased rounding goes up with the probability of the fractional part, by noise added before
rounding to nearest. The feedback is linear, so the error has mean 0 where nothing is clamped.

Grids (grids/fitted.py): `uniform`, layers/centred.py; `lloyd-max`, linalg/lloyd_max.py; `trellis`,
linalg/trellis_code.py, which makes this QTIP (Tseng et al. 2024); `minmax`, grids/uniform.py, with
one scale per row. Dead columns (input always 0) take part in no feedback, as in GPTQ.

The uniform grid cuts off weights beyond its range. The released code clamps them before it rounds:
what was cut off is then in no E, and the columns that follow cannot make up for it. At 3 bits that
was up to half of the error (docs/mathematics.md). Here E is the error to W; with `clamp_first`,
which `--method quip` sets, it is the released code's.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.grids.fitted import FittedGrid, GridName, fit, storage
from q2n.kernels.column_sweep import Sweep, sweep
from q2n.kernels.coordinate_descent import ColumnDescent
from q2n.kernels.rounding_rules import Rule, UniformRule
from q2n.kernels.row_segments import even_borders, sweep_segments
from q2n.layers.quantized import QuantizedLinear, StorageSpec
from q2n.linalg import trellis_code
from q2n.linalg.factor import Feedback, compensated, damped, feedback
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Work
from q2n.methods.row_feedback import NO_FEEDBACK, RowFeedback
from q2n.option_types import Bits, CountOrZero, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class LDLQ(RowFeedback):
    """Rounding with feedback from the LDL factor of the input's second moments."""

    name: ClassVar[str] = "ldlq"
    strategy: ClassVar[str] = "compensation"
    block_size: ClassVar[int] = 128
    """Columns between two matrix products."""

    bits: Bits = 4
    """Bits per weight: 2, 3, 4 or 8."""
    grid: GridName = "uniform"
    """uniform: levels spread evenly around 0, one scale per matrix; lloyd-max: the same with levels
    closer where Gaussian weights are likelier; trellis: codes along a column that together choose
    among many more levels (at 8 bits: lloyd-max); minmax: evenly over each row's range."""
    clip_sigma: Positive | None = None
    """How far the uniform grid reaches, in root mean squares of the matrix (QuIP as published:
    2.4). By default what suits Gaussian weights best: 1.49, 2.05, 2.51, 3.92 at 2, 3, 4, 8 bits."""
    damping: NonNegative = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    order: Literal["natural", "sorted"] = "natural"
    """Columns from the last to the first, or from the largest input to the smallest."""
    descent_passes: CountOrZero = 1
    """Passes of coordinate descent on the loss after the rounding, at most."""
    unbiased: bool = False
    """Round up with the probability of the fractional part."""
    clamp_first: bool = False
    """Clamp the weights to the uniform grid's range beforehand, as the released code of QuIP does.
    Otherwise what the range cuts off is fed back like any other error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("clip_sigma", self.clip_sigma), ("clamp_first", self.clamp_first)):
            if value and self.grid != "uniform":
                raise InputError(
                    f"{name} belongs to --grid uniform: use that, or leave {name} out "
                    "(--method quip sets it: for another grid, --method ldlq --incoherence)"
                )
        if self.grid in ("lloyd-max", "trellis") and self.unbiased:
            raise InputError("unbiased rounding needs even levels: use --grid uniform or minmax")
        if self.unbiased and self.descent_passes:
            raise InputError(
                "coordinate descent rounds to nearest, which undoes unbiased rounding: "
                "with unbiased use --descent-passes 0"
            )

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM

    @property
    def trial(self) -> "LDLQ":
        return replace(self, **NO_FEEDBACK)

    @property
    def work(self) -> Work:
        """With passes of descent; trellis codes with a search among walks instead."""
        searches = 100000.0 if self.grid == "trellis" else 2500.0 * self.descent_passes
        return super().work + Work(weight=searches)

    @property
    def storage(self) -> StorageSpec:
        return storage(self.grid, self.bits)

    def check(self, name: str, shape: tuple[int, int]) -> None:
        least = trellis_code.DIGITS.get(self.bits, 1) if self.grid == "trellis" else 1
        if shape[0] < least:
            raise InputError(
                f"{name}: a trellis code of {self.bits} bits needs {least} rows at least, not "
                f"{shape[0]}; use --grid lloyd-max"
            )

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        back, grid = self._feedback(problem), self._fitted(problem)
        weight, noise = grid.weight.T[back.order], self._noise(grid, problem)
        descent = ColumnDescent.of(damped(problem.measured.gram, back), self.descent_passes)
        changes: list[int] = []
        rows, columns = problem.weight.shape

        def rounded(part: Float[Tensor, "in rows"], a: int, b: int) -> Sweep:
            first, final = self._swept(
                part, grid.rule.rows(a, b), back, descent, None if noise is None else noise[:, a:b]
            )
            changes.append(int((final.codes != first.codes).sum()))
            return final

        record = back.record
        if self.output_feedback:
            factor = self.output_factor(problem)
            swept = sweep_segments(weight, factor.matrix, self._borders(rows), rounded)
            record["output_damping"] = factor.damping
        else:
            swept = rounded(weight, 0, rows)
        layer = grid.stored(swept.layer_codes(back.order, columns))
        return layer.with_record(**record, descent_changes=sum(changes))

    def _swept(
        self,
        weight: Float[Tensor, "in out"],
        rule: Rule,
        back: Feedback,
        descent: ColumnDescent,
        noise: Float[Tensor, "in out"] | None,
    ) -> tuple[Sweep, Sweep]:
        """Columns in visiting order after the sweep, and after the descent."""

        def again(matrix: Tensor, offset: Tensor | None) -> Sweep:
            return sweep(weight, matrix, rule, block_size=self.block_size, offset=offset)

        first = again(back.matrix, noise)
        return first, descent(first, again)

    def _borders(self, rows: int) -> list[int]:
        """Of the segments of rows: those of the trellis, where there is one."""
        return trellis_code.borders(rows) if self.grid == "trellis" else even_borders(rows)

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        back = self._feedback(problem)
        start, borders = self._fitted(problem).rounded_weight, self._borders(len(quantized))
        weight = self.segment_targets(problem, start, quantized, borders)
        return compensated(weight, quantized, back, self.block_size)

    def _feedback(self, problem: LayerProblem) -> Feedback:
        """The factor of the damped Gram matrix, computed once per input site."""
        statistics = problem.measured
        key = ("ldlq", self.damping, self.order)
        return statistics.once(key, lambda: self._factor(statistics.gram, problem.name))

    def _factor(self, gram: Float[Tensor, "in in"], name: str) -> Feedback:
        order = torch.arange(len(gram), device=gram.device).flip(0)
        if self.order == "sorted":
            order = torch.argsort(gram.diagonal(), descending=True, stable=True)
        return feedback(gram, self.damping, order=order, name=name)

    def _fitted(self, problem: LayerProblem) -> FittedGrid:
        return fit(
            self.grid,
            problem.weight,
            self.bits,
            problem.scale_dtype,
            problem.name,
            clip_sigma=self.clip_sigma,
            clamp_first=self.clamp_first,
        )

    def _noise(self, grid: FittedGrid, problem: LayerProblem) -> Float[Tensor, "in out"] | None:
        """Uniform over one step: rounding to nearest then rounds up with the probability of
        the fractional part."""
        if not self.unbiased:
            return None
        assert isinstance(grid.rule, UniformRule)
        generator = torch.Generator().manual_seed(problem.seed)
        uniform = torch.rand(problem.weight.T.shape, generator=generator)
        return (uniform.to(problem.weight) - 0.5) * grid.rule.scale
