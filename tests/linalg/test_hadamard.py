import pytest
from oracles.quarot import is_hadamard

from q2n.errors import InputError
from q2n.linalg.hadamard import LARGEST_SYLVESTER, hadamard, hadamard_orders

LISTED = (12, 20, 28, 36, 52, 60, 108, 140, 156, 172)
"""The orders that are not powers of two for which QuaRot has a matrix (and 40 = 2 * 20)."""


@pytest.mark.parametrize("order", [1, 2, 16, 64, *LISTED])
def test_rows_agree_in_half_of_the_places(order):
    assert is_hadamard(hadamard(order).numpy())


def test_widths_of_real_models_are_products_of_orders():
    for width in (64, 576, 1536, 4096, 4864, 8960, 11008, 13824, 14336, 18944, 27648, 28672, 40):
        orders = hadamard_orders(width)
        product = 1
        for order in orders:
            assert is_hadamard(hadamard(order).numpy())
            product *= order
        assert product == width
        assert all(order & (order - 1) == 0 for order in orders[1:])
        assert max(orders[1:], default=1) <= LARGEST_SYLVESTER


def test_no_hadamard_matrix():
    for width in (3, 9, 6, 18, 92):
        assert hadamard_orders(width) is None
        with pytest.raises(InputError, match=f"order {width}"):
            hadamard(width)
