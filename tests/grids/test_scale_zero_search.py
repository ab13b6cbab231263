import numpy as np
import pytest
import torch
from oracles import owq as oracle

from q2n.errors import NumericalError
from q2n.grids.granularity import PerGroup
from q2n.grids.scale_zero_search import ScaleZeroGrid
from q2n.grids.uniform import UniformGrid


def weights(rows=6, columns=150, seed=0):
    """Skewed, with outliers of one sign, so that scale and zero point both matter."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values[:, 3] = 5.0
    values[1] = values[1].abs()
    values[:, 7:9] = 0.0
    return 0.03 * values


def criteria(grid, weight, scale, zero):
    found = zip(weight.double().numpy(), scale.double().numpy(), zero.numpy(), strict=True)
    return [oracle.criterion(row, float(s[0]), int(z[0]), grid.bits) for row, s, z in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_finds_the_best_of_its_candidates(bits, symmetric, dtype):
    weight = weights(seed=bits)
    options = {"bits": bits, "symmetric": symmetric}
    grid = ScaleZeroGrid(steps=40, **options)
    scale, zero = grid.fit(weight, dtype, "layer")
    assert scale.dtype == dtype and zero.dtype == torch.uint8
    found = criteria(grid, weight, scale, zero)

    def storage(x):
        return torch.tensor(x).to(dtype)

    brute = [
        oracle.scale_zero_search(row, bits, symmetric, 40, storage)[2]
        for row in weight.double().numpy()
    ]
    # float32 sums, and three Newton steps of a fifth root, against float64
    np.testing.assert_allclose(found, brute, rtol=1e-5)
    minmax = UniformGrid(**options).fit(weight, dtype, "layer")
    assert (np.array(found) < 0.9 * np.array(criteria(grid, weight, *minmax))).any()
    assert (np.array(found) <= 1.001 * np.array(criteria(grid, weight, *minmax))).all()


def test_groups_are_searched_by_themselves():
    weight = weights(columns=40)
    grid = ScaleZeroGrid(bits=3, steps=40, granularity=PerGroup(16, ragged=True))
    scale, zero = grid.fit(weight, torch.float32, "layer")
    assert scale.shape == (6, 3)
    for g, columns in enumerate((slice(0, 16), slice(16, 32), slice(32, 40))):
        alone = ScaleZeroGrid(bits=3, steps=40).fit(weight[:, columns], torch.float32, "layer")
        assert torch.equal(scale[:, [g]], alone[0]) and torch.equal(zero[:, [g]], alone[1])


def test_units_do_not_matter():
    weight = weights()
    scale, zero = ScaleZeroGrid(bits=3).fit(weight, torch.float32, "layer")
    for power in (-60, 60):
        other = ScaleZeroGrid(bits=3).fit(weight * 2.0**power, torch.float32, "layer")
        assert torch.equal(other[0], scale * 2.0**power) and torch.equal(other[1], zero)


def test_weights_that_are_zero_or_no_numbers():
    weight = weights()
    weight[2] = 0
    scale, zero = ScaleZeroGrid(bits=2).fit(weight, torch.float16, "layer")
    assert torch.isfinite(scale).all() and (scale > 0).all()
    assert (UniformGrid(bits=2).encode(weight, scale, zero)[2] == zero[2]).all()
    weight[1, 2] = float("nan")
    with pytest.raises(NumericalError, match="layer: its weight holds NaN"):
        ScaleZeroGrid(bits=2).fit(weight, torch.float16, "layer")
