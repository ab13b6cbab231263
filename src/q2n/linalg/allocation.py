r"""Which group of layers gets how many bits: least cost under a budget.

A group g at width b costs K_g(b), what its rounding does to the predictions, and takes S_g(b)
stored bits. To find

    min sum_g K_g(b_g)   with   sum_g S_g(b_g) <= budget,

every group begins at its smallest width, and bits are spent on one step up after the other: on the
one that gains most for a bit, of all groups and all larger widths, as long as one fits. From a
point of a group that is the next one on the lower convex hull of its points, so after every step
nothing is better for the bits that are spent so far (Fox 1966; Shoham and Gersho 1988). Only the
last steps, which are chosen because they still fit, may miss the best, by one group's step at most.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from q2n.errors import InputError
from q2n.option_types import Width


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
    widths = {group: _smallest(points) for group, points in choices.items()}
    least = sum(choices[group][width].size for group, width in widths.items())
    if least > budget:
        raise InputError(f"the smallest widths take {least} stored bits, more than {budget:.0f}")
    left = budget - least
    while steps := list(_steps(choices, widths, left)):
        _, group, width = max(steps, key=lambda step: step[0])
        left -= choices[group][width].size - choices[group][widths[group]].size
        widths[group] = width
    return widths


def _smallest(points: Mapping[Width, Point]) -> Width:
    return min(points, key=lambda width: points[width].size)


def _steps(
    choices: Choices, widths: Mapping[str, Width], left: float
) -> Iterator[tuple[float, str, Width]]:
    """Steps up that gain something and fit: the gain for a bit, the group, its new width."""
    for group, points in choices.items():
        now = points[widths[group]]
        for width, after in points.items():
            if 0 < after.size - now.size <= left and after.cost < now.cost:
                yield (now.cost - after.cost) / (after.size - now.size), group, width
