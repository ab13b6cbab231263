"""Student's t, against scipy."""

import math

import pytest
from scipy import stats

from q2n.report.student import chance, degrees_of_freedom


@pytest.mark.parametrize("freedom", [1.0, 1.5, 2.0, 3.0, 7.3, 15.0, 100.0, 9999.0, 1e5, math.inf])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0, 4.5, 14.0])
def test_chance_is_that_of_scipy(ratio, freedom):
    assert chance(ratio, freedom) == pytest.approx(2 * stats.t.sf(ratio, freedom), abs=2e-5)


def test_degrees_of_freedom_lie_between_the_least_and_the_sum():
    assert degrees_of_freedom([(2.0, 5.0)]) == 5.0
    assert degrees_of_freedom([(1.0, 4.0), (1.0, 4.0)]) == 8.0
    assert degrees_of_freedom([(1.0, 2.0), (1e-9, 15.0)]) == pytest.approx(2.0)
    assert degrees_of_freedom([(1.0, math.inf), (1.0, 2.0)]) == 8.0
    assert degrees_of_freedom([]) == math.inf
