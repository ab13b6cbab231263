import pytest
import torch

from q2n.linalg.finite import all_finite

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1000, 33)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_at_any_place_is_found(dtype, shape, value):
    numbers = torch.randn(shape).to(dtype)
    assert all_finite(numbers)
    for place in {0, numbers.numel() // 2, numbers.numel() - 1}:
        broken = numbers.clone()
        broken.view(-1)[place] = value
        assert not all_finite(broken)
        assert not all_finite(broken.T if broken.dim() == 2 else broken)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_number_is_finite(dtype):
    assert all_finite(torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype))


def test_nothing_and_integers_are_finite():
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.tensor([1, 2]))
