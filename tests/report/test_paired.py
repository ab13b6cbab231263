"""Means over seeds, against numpy on the array [seed, window]."""

import numpy as np
import pytest

from q2n.report.paired import Estimate, difference, over_seeds, over_windows, unpaired

SEEDS, WINDOWS = 3, 16


def drawn(seed: int) -> np.ndarray:
    """Windows are hard or easy for every row: most of the spread is theirs."""
    hard = np.random.default_rng(0).normal(1.0, 0.3, WINDOWS)
    return hard + np.random.default_rng(seed).normal(0.0, 0.02, (SEEDS, WINDOWS))


def by_seed(values: np.ndarray) -> dict[object, list[float]]:
    return {seed: list(map(float, row)) for seed, row in enumerate(values)}


def test_the_error_is_that_of_the_mean_of_the_seeds_over_windows() -> None:
    d = drawn(1)
    found = over_windows(by_seed(d))
    assert found.value == pytest.approx(d.mean())
    assert found.error == pytest.approx(d.mean(0).std(ddof=1) / np.sqrt(WINDOWS))
    assert found.spread == pytest.approx(d.mean(1).std(ddof=1))
    assert found.seeds == SEEDS


def test_what_makes_a_window_hard_cancels_in_a_difference() -> None:
    a, b = drawn(1), drawn(2) + 0.01
    found = difference(by_seed(a), by_seed(b))
    each = (a - b).mean(0)
    assert found is not None and found.value == pytest.approx((a - b).mean())
    assert found.error == pytest.approx(each.std(ddof=1) / np.sqrt(WINDOWS))
    assert found.error < over_windows(by_seed(a)).error / 10


def test_a_difference_takes_the_seeds_that_both_have() -> None:
    a, b = by_seed(drawn(1)), by_seed(drawn(2))
    del a[0], b[2]
    found = difference(a, b)
    assert found == difference({1: a[1]}, {1: b[1]}) and found.seeds == 1 and found.spread is None
    assert difference({0: [1.0]}, {1: [1.0]}) is None


def test_a_single_window_and_a_single_seed_tell_no_error() -> None:
    assert over_windows({0: [0.5]}) == Estimate(0.5)
    assert over_seeds([0.5], [None]) == Estimate(0.5)
    assert over_seeds([1.0, 2.0], [0.1, None]).error is None


def test_seeds_and_text_add_up_in_squares() -> None:
    assert Estimate(1.0, 0.3, 0.8, 4).total_error == pytest.approx(0.5)
    assert Estimate(1.0, 0.3).total_error == pytest.approx(0.3)
    assert Estimate(1.0).total_error is None


def test_certain_is_more_than_twice_the_error() -> None:
    assert Estimate(-0.21, 0.1).is_certain and not Estimate(-0.19, 0.1).is_certain
    assert not Estimate(0.21, 0.1, 0.1, 2).is_certain and not Estimate(5.0).is_certain


def test_an_error_that_little_tells_must_be_exceeded_by_more() -> None:
    """Quantiles of Student's t that leave 4.55 %: 13.97, 4.53, 3.31 of 1, 2, 3 degrees."""
    for seeds, quantile in ((2, 13.97), (3, 4.53), (4, 3.31)):
        spread = seeds**0.5
        assert Estimate(quantile + 0.02, None, spread, seeds).is_certain
        assert not Estimate(quantile - 0.02, None, spread, seeds).is_certain
    assert not Estimate(2.1, 1.0, windows=16).is_certain
    assert Estimate(2.2, 1.0, windows=16).is_certain
    assert Estimate(1.0, 0.0, 0.0, 2).is_certain and not Estimate(0.0, 0.0).is_certain


@pytest.mark.parametrize(
    ("seeds", "moved", "most"),
    [(1, 0.0, 0.065), (2, 1.0, 0.07), (2, 5.0, 0.135), (3, 1.0, 0.065), (3, 5.0, 0.095)],
)
def test_differences_that_are_none_are_seldom_found(seeds, moved, most) -> None:
    """Seeds move a mean `moved` times as far as the choice of windows does. Twice the error would
    be exceeded in 7, 8, 23, 7 and 14 %."""
    draw, found, cases = np.random.default_rng(seeds), 0, 1500
    for _ in range(cases):
        text = draw.normal(0.0, 1.0, WINDOWS)
        means = draw.normal(0.0, moved / WINDOWS**0.5, (seeds, 1))
        found += over_windows(by_seed(text + means)).is_certain
    assert found / cases < most


def test_without_windows_the_errors_add_up_as_squares() -> None:
    found = unpaired(Estimate(0.5, 0.03, 0.1, 3), Estimate(0.2, 0.04, None, 1))
    assert (found.value, found.error) == (pytest.approx(0.3), pytest.approx(0.05))
    assert found.spread is None and found.seeds == 1
