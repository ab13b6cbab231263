"""Round to nearest: the grid is fitted to the weights, each weight goes to its nearest point.

Needs no calibration text. The yardstick for everything else.
"""

from dataclasses import dataclass
from typing import ClassVar

from q2n.layers.uniform import UniformLinear
from q2n.linalg.groups import group_of_column
from q2n.linalg.statistics import RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods.uniform import UniformMethod


@dataclass(frozen=True, kw_only=True)
class RTN(UniformMethod):
    """Round to nearest on a uniform grid; no calibration."""

    name: ClassVar[str] = "rtn"

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.NONE

    def quantize(self, problem: LayerProblem) -> UniformLinear:
        weight = problem.weight
        scale, zero = self.fitted_grid.fit(weight, problem.scale_dtype, problem.name)
        size = self.granularity.group_size(weight.shape[1], problem.name)
        group = group_of_column(weight.shape[1], size, weight.device)
        codes = self.fitted_grid.encode(weight, scale[:, group], zero[:, group])
        return self.stored(problem, codes, scale, zero)
