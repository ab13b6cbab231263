r"""Which group of layers gets how many bits: least cost under a budget.

A group g at width b costs K_g(b), what its rounding does to the predictions, and takes S_g(b)
stored bits. To find

    min sum_g K_g(b_g)   with   sum_g S_g(b_g) <= budget

a price mu for a bit is put in (Lagrange): each group takes the width with the least K + mu S, which
lies on the lower convex hull of its points, and bisection finds the lowest price at which all fits.
What is left over is spent on single steps up, the best gain for a bit first (Shoham and Gersho
1988). Between two prices there may be a better filling; the loss is at most one group's step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from q2n.errors import InputError
from q2n.option_types import Width

_HALVINGS = 100


@dataclass(frozen=True)
class Point:
    """A group at one width."""

    cost: float
    """In whatever the sum is in."""
    size: int
    """Stored bits."""


Choices = Mapping[str, Mapping[Width, Point]]
"""By group: its points by width."""


def allocate(choices: Choices, budget: float) -> dict[str, Width]:
    """The width of each group.

    Args:
        budget: stored bits of all groups together.

    Raises:
        InputError: the smallest points take more than that.
    """
    least = sum(min(x.size for x in points.values()) for points in choices.values())
    if least > budget:
        raise InputError(
            f"the smallest widths take {least:.0f} stored bits, more than {budget:.0f}"
        )
    low, high = 0.0, 1.0
    while _size(choices, _at_price(choices, high)) > budget:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        if _size(choices, _at_price(choices, price)) > budget:
            low = price
        else:
            high = price
    return _filled(choices, _at_price(choices, high), budget)


def _at_price(choices: Choices, price: float) -> dict[str, Width]:
    """The best width of each group when a bit costs `price`; of equal ones the smaller."""

    def best(points: Mapping[Width, Point]) -> Width:
        return min(points, key=lambda b: (points[b].cost + price * points[b].size, points[b].size))

    return {group: best(points) for group, points in choices.items()}


def _size(choices: Choices, widths: Mapping[str, Width]) -> int:
    return sum(choices[group][width].size for group, width in widths.items())


def _filled(choices: Choices, widths: Mapping[str, Width], budget: float) -> dict[str, Width]:
    """With what the budget leaves spent on steps up, as long as one gains something."""
    widths, left = dict(widths), budget - _size(choices, widths)
    while True:
        steps = [
            ((now.cost - after.cost) / (after.size - now.size), group, width)
            for group, points in choices.items()
            for width, after in points.items()
            for now in [points[widths[group]]]
            if 0 < after.size - now.size <= left and after.cost < now.cost
        ]
        if not steps:
            return widths
        _, group, width = max(steps)
        left -= choices[group][width].size - choices[group][widths[group]].size
        widths[group] = width
