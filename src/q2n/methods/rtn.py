"""Round to nearest: the grid is fitted to the weights, each weight goes to its nearest point.

Needs no calibration text, unless its ranges are learned. The yardstick for everything else.
"""

from dataclasses import dataclass
from typing import ClassVar

from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods.learned_clip import LearnedClip


@dataclass(frozen=True, kw_only=True)
class RTN(LearnedClip):
    """Round to nearest on a uniform grid; no calibration."""

    name: ClassVar[str] = "rtn"
    strategy: ClassVar[str] = "none"

    @property
    def required_statistics(self) -> RequiredStatistics:
        return RequiredStatistics.NONE

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        return self.fit(problem, problem.weight).nearest()
