"""Widths under a budget, beside all that there are."""

from itertools import product

import pytest
import torch

from q2n.errors import InputError
from q2n.linalg.allocation import Point, allocate


def choices_of(costs, weights):
    """Groups of so many weights, with costs by width."""
    return {
        f"g{number}": {bits: Point(cost, bits * size) for bits, cost in one.items()}
        for number, (one, size) in enumerate(zip(costs, weights, strict=True))
    }


def totals(choices, widths):
    chosen = [choices[group][width] for group, width in widths.items()]
    return sum(x.cost for x in chosen), sum(x.size for x in chosen)


def every(choices):
    """All ways to give each group a width, by brute force."""
    for widths in product(*choices.values()):
        yield dict(zip(choices, widths, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_is_better_by_more_than_one_step(seed):
    generator = torch.Generator().manual_seed(seed)
    sensitivities = torch.randn(6, generator=generator).mul(1.5).exp().tolist()
    weights = torch.randint(1, 9, (6,), generator=generator).tolist()
    choices = choices_of([{b: s * 3.4**-b for b in (2, 3, 4, 8)} for s in sensitivities], weights)
    budget = 3.1 * sum(weights)
    cost, size = totals(choices, allocate(choices, budget))
    assert size <= budget
    within = [totals(choices, x) for x in every(choices) if totals(choices, x)[1] <= budget]
    best = min(cost for cost, _ in within)
    steps = [
        abs(points[b].cost - points[a].cost)
        for points in choices.values()
        for a, b in ((2, 3), (3, 4), (4, 8))
    ]
    assert best <= cost <= best + max(steps)


@pytest.mark.parametrize("price", [0.001, 0.01, 0.1])
def test_what_is_best_at_a_price_is_best_for_its_budget(price):
    sensitivities, weights = [0.3, 5.0, 1.0, 20.0, 0.1], [8, 3, 5, 1, 2]
    choices = choices_of([{b: s * 3.4**-b for b in (2, 3, 4, 8)} for s in sensitivities], weights)
    at_price = {
        group: min(points, key=lambda b, x=points: x[b].cost + price * x[b].size)
        for group, points in choices.items()
    }
    best, size = totals(choices, at_price)
    assert allocate(choices, float(size)) == at_price
    found = [totals(choices, x) for x in every(choices)]
    assert best == min(cost for cost, taken in found if taken <= size)


def test_equal_groups_get_equal_widths_where_the_budget_allows():
    choices = choices_of([{2: 1.0, 3: 0.3, 4: 0.1}] * 4, [10] * 4)
    assert set(allocate(choices, 120.0).values()) == {3}
    assert sorted(allocate(choices, 125.0).values()) == [3, 3, 3, 3]
    assert sorted(allocate(choices, 130.0).values()) == [3, 3, 3, 4]


def test_bits_that_gain_nothing_are_not_spent():
    choices = choices_of([{2: 0.0, 3: 0.0, 8: 0.1}], [10])
    assert allocate(choices, 80.0) == {"g0": 2}


def test_too_small_a_budget_is_refused():
    with pytest.raises(InputError, match="take 20 stored bits, more than 19"):
        allocate(choices_of([{2: 1.0, 3: 0.5}], [10]), 19.0)
