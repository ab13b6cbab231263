import numpy as np
import pytest
import torch
from oracles.quarot import per_token

from q2n.errors import InputError
from q2n.grids.per_token import TokenGrid


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size", "clip"), [(4, -1, 1.0), (4, 8, 0.9), (3, 16, 0.95)])
def test_it_rounds_each_token_by_itself(symmetric, bits, group_size, clip):
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3], x[1, 2] = 20.0, 0.0  # an outlier, a token of zeros
    x[1, 3] = x[1, 3].abs()  # no negative value
    grid = TokenGrid(bits=bits, symmetric=symmetric, group_size=group_size, clip=clip)
    size = 32 if group_size == -1 else group_size
    expected = per_token(x.double().numpy(), bits, symmetric, size, clip)
    # float32 arithmetic on values up to 20; no value of this draw lies half-way
    np.testing.assert_allclose(grid.quantize(x), expected, rtol=0, atol=1e-5)


def test_a_gradient_passes_rounding_unchanged():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    slope = torch.arange(48.0).view(3, 16)
    for grid in (TokenGrid(bits=2, clip=0.5), TokenGrid(symmetric=False, group_size=4)):
        (found,) = torch.autograd.grad(grid.quantize(x), x, slope)
        assert torch.equal(found, slope)


def test_the_number_of_levels_and_the_dtype():
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    rounded = TokenGrid(bits=3).quantize(x)
    assert rounded.dtype == torch.bfloat16
    assert all(len(token.unique()) <= 8 for token in rounded)
    assert torch.equal(TokenGrid().quantize(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_options_that_cannot_be():
    for options, match in (
        ({"bits": 1}, "2 to 8 bits"),
        ({"bits": 16}, "2 to 8 bits"),
        ({"group_size": 0}, "group"),
        ({"clip": 0.0}, "clip"),
        ({"clip": 1.1}, "clip"),
    ):
        with pytest.raises(InputError, match=match):
            TokenGrid(**options)
    with pytest.raises(InputError, match="do not divide the 64 values of a head"):
        TokenGrid(group_size=48).check(64, "a head")
