"""Methods whose rows may make up for each other's errors (kernels/row_segments.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from q2n.errors import InputError
from q2n.kernels.row_segments import segment_targets
from q2n.linalg.factor import Feedback, feedback
from q2n.method import LayerProblem, Method, Work
from q2n.option_types import Positive

_DAMPING = 2.0


@dataclass(frozen=True, kw_only=True)
class RowFeedback(Method):
    """A method that can feed errors back from rows to later rows."""

    output_feedback: bool = False
    """Make up for the errors of rows in later rows too, by what outputs count for the model's own
    predictions (YAQA): a pass of gradients over the text before the first block."""
    output_damping: Positive = _DAMPING
    """Added to the diagonal of the gradients' second moments, as a share of its mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_damping != _DAMPING and not self.output_feedback:
            raise InputError(
                "output_damping does nothing without output_feedback: add --output-feedback true, "
                "or leave it out"
            )

    @property
    def title(self) -> str:
        rows = " with feedback between rows" if self.output_feedback else ""
        return f"{super().title}{rows}"

    @property
    def reads_gradients(self) -> bool:
        return self.output_feedback

    @property
    def work(self) -> Work:
        """With a factor, products with the errors of earlier rows, and sweeps over few rows at a
        time."""
        more = Work(rows=0.5, output=0.7, weight=2000.0) if self.output_feedback else Work()
        return super().work + more

    def output_factor(self, problem: LayerProblem) -> Feedback:
        """The factor of the damped moments of the gradients at the layer's output, whose rows are
        visited as they lie.

        Raises:
            NumericalError: no damping makes the moments positive definite.
        """
        return feedback(
            problem.output_moments,
            self.output_damping,
            name=problem.name,
            what="matrix of the gradients at its output",
            flag="--output-damping",
        )

    def segment_targets(
        self,
        problem: LayerProblem,
        weight: Float[Tensor, "out in"],
        quantized: Float[Tensor, "out in"],
        borders: Sequence[int],
    ) -> Float[Tensor, "out in"]:
        """What the rows of `weight` had become when they were rounded to `quantized`: itself
        without feedback between rows."""
        if not self.output_feedback:
            return weight
        return segment_targets(weight, quantized, self.output_factor(problem).matrix, borders)


NO_FEEDBACK: dict[str, Any] = {"output_feedback": False, "output_damping": _DAMPING}
"""The options of a method without it."""
