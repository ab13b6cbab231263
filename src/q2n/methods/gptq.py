"""GPTQ (Frantar et al. 2023): columns are rounded in order, and what rounding one of them
does to the layer's output is made up for by the columns that follow.

The feedback matrix comes from one Cholesky factor of the damped Gram matrix
(linalg/factor.py), the loop over columns is in sweep.py.

Parameters of the grid: *static* ones are fitted to the original weights, group by group in
the layer's own column order, before anything is rounded; with `act_order` a visited
column then uses the group to which it belongs in the layer. *Dynamic* ones
(`static_groups=False`) are fitted when the sweep reaches a group, to the weights updated
up to there; that needs the layer's own order. Without groups both are the same.

Dead columns (input always 0) are set to 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.grids.affine import AffineLinear, group_of_column
from q2n.linalg.factor import Feedback, feedback, working_copy
from q2n.linalg.statistics import Needs
from q2n.methods.affine import AffineMethod
from q2n.methods.problem import LayerProblem
from q2n.methods.sweep import Refit, Sweep, sweep


@dataclass(frozen=True, kw_only=True)
class GPTQ(AffineMethod):
    """Column by column with error feedback from the input's second moments."""

    name: ClassVar[str] = "gptq"

    act_order: bool = True
    """Visit the columns with the largest input first."""
    static_groups: bool = True
    """Fit all groups before the sweep; False only without act_order."""
    damping: float = 0.01
    """Added to the Gram matrix's diagonal, as a share of its mean."""
    block_size: int = 128
    """Columns between two matrix products. Changes speed and rounding noise alone, and the
    borders at which the compensated weight is taken (every 128 in the released code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise InputError(f"damping must be finite and at least 0, got {self.damping}")
        if self.block_size < 1:
            raise InputError(f"block_size must be at least 1, got {self.block_size}")
        if self.act_order and not self.static_groups and self.group_size != -1:
            raise InputError(
                "act_order visits the columns of a group at different times: "
                "use static_groups=True or act_order=False"
            )

    @property
    def needs(self) -> Needs:
        return Needs.GRAM

    def quantize(self, problem: LayerProblem) -> AffineLinear:
        return self._run(problem)[0]

    def quantize_compensated(
        self, problem: LayerProblem
    ) -> tuple[AffineLinear, Float[Tensor, "out m"]]:
        """The layer, and the weight from which it was rounded: W updated at the border of
        each block for the columns of all earlier blocks, not for those of the same block."""
        layer, found, back = self._run(problem)
        ordered = problem.weight.masked_fill(back.dead, 0).T[back.order]
        compensated = torch.empty_like(problem.weight)
        copy = working_copy(ordered, found.error, back.matrix, self.block_size)
        compensated[:, back.order] = copy.T
        return layer, compensated

    def _run(self, problem: LayerProblem) -> tuple[AffineLinear, Sweep, Feedback]:
        back = self._feedback(problem)
        weight = problem.weight.masked_fill(back.dead, 0)
        size = self.granularity.group_size(weight.shape[1], problem.name)
        group = group_of_column(weight.shape[1], size, weight.device)[back.order]
        scale, zero = self.grid.fit(weight, problem.scale_dtype, problem.name)
        scale, zero = scale.T.to(weight.dtype).contiguous(), zero.T.contiguous()
        found = sweep(
            weight.T[back.order],
            back.matrix,
            scale,
            zero,
            group,
            top=self.grid.top,
            block_size=self.block_size,
            refit=self._refit(problem),
        )
        codes = torch.empty_like(weight, dtype=torch.uint8)
        codes[:, back.order] = found.codes.T
        layer = self.stored(problem, codes, scale.T.to(problem.scale_dtype), zero.T)
        layer = layer.with_record(damping=back.damping, dead_columns=int(back.dead.sum()))
        return layer, found, back

    def _feedback(self, problem: LayerProblem) -> Feedback:
        statistics = problem.statistics
        assert statistics is not None
        statistics.require_finite(problem.name)
        return statistics.once(
            ("feedback", self.damping, self.act_order),
            lambda: feedback(
                statistics.gram, self.damping, descending=self.act_order, name=problem.name
            ),
        )

    def _refit(self, problem: LayerProblem) -> Refit | None:
        if self.static_groups or self.group_size == -1:
            return None
        return lambda columns: self.grid.fit_groups(columns.T, problem.scale_dtype, problem.name)
