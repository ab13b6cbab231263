"""Any method on weights corrected toward the full-precision model's output.

What reaches a layer is the quantized prefix's output; this makes the layer's weight reproduce,
from there, what the full-precision model has at its output, as far as a linear map can, and
quantizes that weight. With a `stream_share` a layer that writes to the residual stream makes up for
that share of what the stream lacks as well. The closed form and its ridge: linalg/correction.py. It
costs the second stream and one product of the width of the input, and stores nothing.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from q2n.layers.quantized import QuantizedLinear
from q2n.linalg.correction import corrector
from q2n.linalg.held_out import correction_ridge
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem, Work, Wrapper
from q2n.option_types import NonNegative


@dataclass(frozen=True, kw_only=True)
class InputErrorCorrection(Wrapper):
    """A method on weights that make up for the error of the layers below."""

    name: ClassVar[str] = "correction"

    correction_ridge: NonNegative = 0.5
    """Holds the corrected weight near the original one; as a share of the Gram matrix's mean
    diagonal."""
    correction_held_out: bool = False
    """Choose the ridges layer by layer by the error on held-out calibration windows;
    `correction_ridge` is for layers with too little text for that."""

    @property
    def title(self) -> str:
        return f"{self.inner.title} on weights corrected for the error of the layers below"

    @property
    def required_statistics(self) -> RequiredStatistics:
        folds = RequiredStatistics.FOLDS if self.correction_held_out else RequiredStatistics.NONE
        return (
            self.inner.required_statistics
            | RequiredStatistics.GRAM
            | RequiredStatistics.CROSS
            | folds
        )

    @property
    def own_work(self) -> Work:
        return Work(layer=1.0, site=1.0)

    def quantize(self, problem: LayerProblem) -> QuantizedLinear:
        statistics = problem.measured
        ridge = self.correction_ridge
        if self.correction_held_out and statistics.folds:
            ridge = correction_ridge(problem.weight, statistics, name=problem.name)
        change = self._change(problem, ridge)
        layer = self.inner.quantize(replace(problem, weight=problem.weight + change))
        moved = float(change.norm() / problem.weight.norm().clamp(min=1e-30))
        return layer.with_record(correction=moved, correction_ridge=ridge)

    def _change(self, problem: LayerProblem, ridge: float) -> Float[Tensor, "out in"]:
        """W' - W. What layers with one input share is computed once."""
        statistics, name = problem.measured, problem.name
        if (lack := statistics.stream_lack) is not None:
            moment = problem.weight @ statistics.residual + lack
            return corrector(statistics.gram, moment, ridge, name=name)
        return problem.weight @ statistics.once(
            ("corrector", ridge),
            lambda: corrector(statistics.gram, statistics.residual, ridge, name=name),
        )
