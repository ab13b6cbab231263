"""What the methods with error feedback share: the factor of an input site, and its options."""

import math

from q2n.errors import InputError
from q2n.linalg.factor import Feedback, feedback
from q2n.methods.problem import LayerProblem


def shared_feedback(problem: LayerProblem, damping: float, *, descending: bool) -> Feedback:
    """The factor of the damped Gram matrix, computed once an input site.

    Raises:
        NumericalError: the statistics are not finite, or no damping helps.
    """
    statistics = problem.statistics
    assert statistics is not None
    statistics.require_finite(problem.name)
    return statistics.once(
        ("feedback", damping, descending),
        lambda: feedback(statistics.gram, damping, descending=descending, name=problem.name),
    )


def check_feedback(damping: float, block_size: int) -> None:
    """Refuse options of the feedback that cannot be."""
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping must be finite and at least 0, got {damping}")
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}")
