r"""Student's t: how often a mean is so many errors off by chance, the error being itself estimated.

With t = sqrt(n) tan(a) the density of n degrees of freedom is cos(a)^(n-1), so that

    P(|T| > t) = 1 - int_0^A cos(a)^(n-1) da / int_0^{pi/2} cos(a)^(n-1) da,  A = atan(t / sqrt n),

where the second integral is sqrt(pi) Gamma(n / 2) / (2 Gamma((n + 1) / 2)).

An error that is made of independent parts has about as many degrees of freedom as Welch says:

    n = (sum of s_i^2)^2 / sum of s_i^4 / n_i.
"""

import math
from collections.abc import Iterable

_STEPS = 256
"""Of the integral: six digits."""
_NORMAL = 1e4
"""From so many degrees of freedom on the normal distribution is as good."""


def chance(ratio: float, freedom: float) -> float:
    """How often a mean is more than `ratio` >= 0 of its errors off, to either side."""
    if freedom > _NORMAL:
        return math.erfc(ratio / math.sqrt(2))
    whole = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) * math.sqrt(math.pi)
    within = _integral(math.atan(ratio / math.sqrt(freedom)), freedom - 1)
    return max(0.0, 1 - 2 * within / whole)


def degrees_of_freedom(parts: Iterable[tuple[float, float]]) -> float:
    """Of an error with these parts: each one's square and its own degrees of freedom."""
    parts = list(parts)
    below = sum(square**2 / own for square, own in parts)
    return sum(square for square, _ in parts) ** 2 / below if below else math.inf


def _integral(end: float, power: float) -> float:
    """Of cos(a)^power from 0 to `end` < pi / 2, by Simpson's rule."""
    width = end / _STEPS
    values = [math.cos(width * i) ** power for i in range(_STEPS + 1)]
    return width / 3 * (values[0] + 4 * sum(values[1::2]) + 2 * sum(values[2:-1:2]) + values[-1])
