import numpy as np
import pytest
import torch
from oracles import quip as oracle

from q2n.grids import gaussian_range
from q2n.layers.levels import LloydMaxLinear
from q2n.linalg import lloyd_max


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_level_is_the_mean_of_its_cell(bits):
    levels = lloyd_max.levels(bits).numpy()
    error, means = oracle.level_error(levels)
    np.testing.assert_allclose(means, levels, atol=4e-5)  # a step of the integral
    assert error < oracle.gaussian_error(bits, gaussian_range.BEST_CLIP_SIGMA[bits])
    if bits < 8:  # Max 1960, table I
        assert error == pytest.approx({2: 0.1175, 3: 0.03454, 4: 0.009497}[bits], rel=1e-3)


def test_a_layer_is_its_levels_times_a_scale():
    codes = torch.arange(8, dtype=torch.uint8).repeat(2, 1)
    layer = LloydMaxLinear(codes=codes, scale=torch.tensor([2.0]), bits=3)
    found = layer.scale_rows(torch.tensor([1.0, 0.5])).dequantize()
    levels = lloyd_max.levels(3).numpy()
    expected = levels / levels[-1]
    np.testing.assert_allclose(found[0], 2 * expected, rtol=1e-6)
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)
    assert layer.stored_bits == 3 * 16 + 32
