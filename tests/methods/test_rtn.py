import numpy as np
import oracles
import pytest
import torch

from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.method import LayerProblem
from q2n.methods import METHODS
from q2n.methods.rtn import RTN


def problem(rows=6, columns=24, **options):
    # float64: a symmetric grid puts the largest weight half-way between two points, and
    # float32 may round it the other way than the oracle
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return LayerProblem(name="layers.0.up", weight=weight, statistics=None, **options)


@pytest.mark.parametrize("group_size", [-1, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rtn_is_the_definition(group_size, symmetric):
    given = problem()
    layer = RTN(bits=3, group_size=group_size, symmetric=symmetric).quantize(given)
    size = 24 if group_size == -1 else group_size
    for start in range(0, 24, size):
        part = given.weight[:, start : start + size].numpy()
        scale, zero = oracles.minmax(part, 3, symmetric)
        expected = oracles.rtn(part, scale[:, None], zero[:, None], 3)
        got = layer.dequantize()[:, start : start + size]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_rtn_needs_no_calibration():
    assert RTN().required_statistics == RequiredStatistics.NONE
    assert METHODS["rtn"] is RTN


def test_options_that_cannot_be():
    for options, match in (
        ({"bits": 7}, "bits is 7; it takes one of 2, 3, 4, 5, 6, 8"),
        (
            {"group_size": 0},
            "group_size is 0; it takes a whole number at least 1 and at most 1000000, or -1",
        ),
        (
            {"group_size": -2},
            "group_size is -2; it takes a whole number at least 1 and at most 1000000, or -1",
        ),
    ):
        with pytest.raises(InputError, match=match):
            RTN(**options)
    with pytest.raises(InputError, match=r"layers\.0\.up.*24 columns"):
        RTN(group_size=7).quantize(problem())
    assert RTN(group_size=7, ragged_groups=True).quantize(problem()).scale.shape == (6, 4)
