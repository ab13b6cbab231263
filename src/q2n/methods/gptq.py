"""GPTQ (Frantar et al. 2023): columns are rounded in order, and what rounding one of them
does to the layer's output is made up for by the columns that follow.

The feedback matrix comes from one Cholesky factor of the damped Gram matrix
(linalg/factor.py), the loop over columns is in
kernels/column_sweep.py.

Parameters of the grid: *static* ones are fitted to the original weights, group by group in
the layer's own column order, before anything is rounded; with `act_order` a visited
column then uses the group to which it belongs in the layer. *Dynamic* ones
(`static_groups=False`) are fitted when the sweep reaches a group, to the weights updated
up to there; that needs the layer's own order. Without groups both are the same.

With `output_feedback` the rows make up for each other as well, segment by segment
(kernels/row_segments.py); ranges that are tried are chosen before, row by row.

Dead columns (input always 0) take part in no feedback: their original weights are rounded. The
released code sets them to 0.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from q2n.block_types import BLOCK_TYPES
from q2n.errors import InputError
from q2n.grids.fitted import FittedGrid, grid_of
from q2n.kernels.column_sweep import GroupFit, Sweep, sweep
from q2n.kernels.coordinate_descent import ColumnDescent
from q2n.kernels.rounding_rules import Rule, UniformRule
from q2n.kernels.row_segments import even_borders, sweep_segments
from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.factor import Feedback, compensated, damped
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Work, shared_feedback
from q2n.methods.learned_clip import LearnedClip
from q2n.methods.range_trials import FACTORS, best_rows, ranges_around
from q2n.methods.row_feedback import NO_FEEDBACK, RowFeedback
from q2n.option_types import Count, CountOrZero, NonNegative


@dataclass(frozen=True, kw_only=True)
class GPTQ(RowFeedback, LearnedClip):
    """Column by column with error feedback from the input's second moments."""

    name: ClassVar[str] = "gptq"
    strategy: ClassVar[str] = "compensation"

    act_order: bool = True
    """Visit the columns with the largest input first."""
    static_groups: bool = True
    """Fit all groups before the sweep; False only without act_order."""
    damping: NonNegative = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    range_trials: bool = False
    """Round with several ranges: that of clip, narrower and wider ones, minmax; each row keeps the
    one that changes its output least."""
    descent_passes: CountOrZero = 0
    """Passes of coordinate descent on the loss after the sweep, at most."""
    block_size: Count = 128
    """Columns between two matrix products. Changes speed and rounding noise alone, and the
    borders at which the compensated weight is taken (every 128 in the released code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.act_order and self._fits_on_the_way:
            raise InputError(
                "act_order visits the columns of a group at different times: "
                "use --static-groups or --act-order false"
            )
        if self.range_trials and self._fits_on_the_way:
            raise InputError(
                "range_trials fits all groups before the sweep: use --static-groups, or "
                "--range-trials false"
            )
        if self.clip == "learned" and self._fits_on_the_way:
            raise InputError(
                "learned ranges are fitted before the sweep: use --static-groups, or --clip mse"
            )
        if self.output_feedback and self._fits_on_the_way:
            raise InputError(
                "output_feedback rounds segments of rows one after the other, on groups that are "
                "fitted before: use --static-groups, or --output-feedback false"
            )

    @property
    def _fits_on_the_way(self) -> bool:
        """Whether groups are fitted when the sweep reaches them."""
        return not self.static_groups and self.group_size != -1

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.GRAM

    @property
    def work(self) -> Work:
        """With a sweep and its cost for every range beside the first, and one with feedback between
        rows at the end."""
        if not self.range_trials:
            return super().work
        more = len(FACTORS) + (self.clip != "minmax") + self.output_feedback
        return super().work + Work(layer=1.0 + 2.0 * more, weight=1500.0 * more)

    @property
    def trial(self) -> "GPTQ":
        return replace(self, range_trials=False, descent_passes=0, **NO_FEEDBACK)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        back = shared_feedback(problem, self.damping, descending=self.act_order)
        descent = self._descent(problem, back)
        weight = problem.weight
        grid = self.fit(problem, weight, problem.measured.gram.diagonal())
        if self.range_trials:
            layer = best_rows(
                ranges_around(grid, *self._minmax(problem, weight)),
                lambda tried: self._rounded(problem, tried, back, descent),
                back,
            )
            if not self.output_feedback:
                return layer.with_record(**back.record)
            grid = grid_of(layer, weight)
        record = back.record
        if self.output_feedback:
            factor = self.output_factor(problem)
            rounded = self._in_segments(problem, grid, back, descent, factor)
            record["output_damping"] = factor.damping
        else:
            rounded = self._rounded(problem, grid, back, descent)
        layer = grid.stored(rounded.layer_codes(back.order, weight.shape[1]))
        return layer.with_record(**record)

    def _minmax(
        self, problem: LayerProblem, weight: Float[Tensor, "out in"]
    ) -> list[FittedGrid[QuantizedLinear]]:
        """The widest range, where `clip` is not this one and there is one."""
        if self.grid in BLOCK_TYPES or self.clip == "minmax":
            return []
        return [self.in_whole_range.fit(problem, weight)]

    def _rounded(
        self,
        problem: LayerProblem,
        grid: FittedGrid[QuantizedLinear],
        back: Feedback,
        descent: ColumnDescent | None,
    ) -> Sweep:
        """The weight of a grid, its rows independently of each other."""
        rule = grid.rule.in_order(back.order)
        return self._swept(problem, grid.weight.T[back.order], rule, back, descent)

    def _in_segments(
        self,
        problem: LayerProblem,
        grid: FittedGrid[QuantizedLinear],
        back: Feedback,
        descent: ColumnDescent | None,
        rows: Feedback,
    ) -> Sweep:
        """The same with feedback between segments of rows."""
        rule, weight = grid.rule.in_order(back.order), grid.weight.T[back.order]
        return sweep_segments(
            weight,
            rows.matrix,
            even_borders(weight.shape[1]),
            lambda target, a, b: self._swept(problem, target, rule.rows(a, b), back, descent),
        )

    def _descent(self, problem: LayerProblem, back: Feedback) -> ColumnDescent | None:
        if not self.descent_passes:
            return None
        return ColumnDescent.of(damped(problem.measured.gram, back), self.descent_passes)

    def _swept(
        self,
        problem: LayerProblem,
        weight: Float[Tensor, "in out"],
        rule: Rule,
        back: Feedback,
        descent: ColumnDescent | None,
    ) -> Sweep:
        """Columns in visiting order after the sweep and, if asked for, the descent."""
        size = self.block_size
        rounded = sweep(
            weight,
            back.matrix,
            rule,
            block_size=size,
            group_fit=self._group_fit(problem, rule),
        )
        if descent is None:
            return rounded
        return descent(
            rounded,
            lambda matrix, offset: sweep(weight, matrix, rule, block_size=size, offset=offset),
        )

    def compensated(
        self, problem: LayerProblem, quantized: Float[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        back = shared_feedback(problem, self.damping, descending=self.act_order)
        borders = even_borders(len(quantized))
        weight = self.segment_targets(problem, problem.weight, quantized, borders)
        return compensated(weight, quantized, back, self.block_size)

    def _group_fit(self, problem: LayerProblem, rule: Rule) -> GroupFit | None:
        if not self._fits_on_the_way:
            return None
        assert isinstance(rule, UniformRule)

        def write(group: int, columns: Float[Tensor, "size out"]) -> None:
            rule.scale[group], rule.zero[group] = self.fitted_grid.fit_groups(
                columns.T, problem.scale_dtype, problem.name
            )

        return GroupFit(rule.group, write)
