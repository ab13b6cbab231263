"""Round to nearest: the grid is fitted to the weights, each weight goes to its nearest point.

Needs no calibration text. The yardstick for everything else.
"""

from dataclasses import dataclass
from typing import ClassVar

from q2n.grids.affine import AffineLinear, group_of_column
from q2n.linalg.statistics import Needs
from q2n.methods.affine import AffineMethod
from q2n.methods.problem import LayerProblem


@dataclass(frozen=True, kw_only=True)
class RTN(AffineMethod):
    """Round to nearest on a uniform grid; no calibration."""

    name: ClassVar[str] = "rtn"

    @property
    def needs(self) -> Needs:
        return Needs.NONE

    def quantize(self, problem: LayerProblem) -> AffineLinear:
        weight = problem.weight
        scale, zero = self.grid.fit(weight, problem.scale_dtype, problem.name)
        size = self.granularity.group_size(weight.shape[1], problem.name)
        group = group_of_column(weight.shape[1], size, weight.device)
        codes = self.grid.encode(weight, scale[:, group], zero[:, group])
        return self.stored(problem, codes, scale, zero)
