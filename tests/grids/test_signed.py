import numpy as np
import pytest
import torch
from oracles.quarot import signed_range

from q2n.errors import NumericalError
from q2n.grids.signed import SignedGrid


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_clip_search_is_its_definition(bits):
    weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    weight[0] = weight[0].abs()
    weight[1, 0] = 9.0
    scale, zero = SignedGrid(bits=bits, clip="mse").fit(weight, torch.float32, "w")
    expected = [signed_range(row.double().numpy(), bits) for row in weight]
    np.testing.assert_allclose(scale.squeeze(1), expected, rtol=1e-6)  # eps of float32, no ties
    assert (zero == 2 ** (bits - 1)).all()


def test_largest_weight_is_on_the_grid_without_search():
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    grid = SignedGrid(bits=4)
    scale, zero = grid.fit(weight, torch.float32, "w")
    dense = scale * (grid.encode(weight, scale, zero).float() - zero)
    largest = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(dense.gather(1, largest), weight.gather(1, largest))
    with pytest.raises(NumericalError, match=r"h\.0\.up: its weight holds NaN"):
        grid.fit(weight.masked_fill(weight > 1, float("nan")), torch.float32, "h.0.up")
