"""Linear layers in half precision whose factors are widened, against sums of float64."""

import pytest
import torch
from torch.nn.functional import linear

from q2n.linalg import forward_products as module
from q2n.linalg.forward_products import forward_products

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def slow(monkeypatch):
    """A processor on which widening gains, and the number of layers that were widened."""
    widened = []
    inner = module._Linear.apply

    def count(*args):
        widened.append(args[0].dtype)
        return inner(*args)

    monkeypatch.setattr(module, "gain", lambda _: 5.0)
    monkeypatch.setattr(module._Linear, "apply", count)
    return widened


def numbers(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_that_of_exact_sums_rounded_once(slow, dtype, bias):
    layer = torch.nn.Linear(48, 24, bias=bias).to(dtype)
    x = numbers(2, 40, 48, dtype=dtype)
    with torch.no_grad(), forward_products(CPU):
        y = layer(x)
    assert slow == [dtype] and y.dtype == dtype
    exact = layer.double()(x.double())
    half = torch.finfo(dtype).eps / 2  # of rounding to the nearest; float32 sums are beside it
    assert ((y.double() - exact).abs() <= 1.01 * half * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", HALF)
def test_gradients_are_those_of_the_exact_layer(slow, dtype):
    layer = torch.nn.Linear(48, 24).to(dtype)
    x = numbers(2, 40, 48, dtype=dtype).requires_grad_()
    above = numbers(2, 40, 24, dtype=dtype, seed=1)
    with forward_products(CPU):
        layer(x).backward(above)
    exact = torch.nn.Linear(48, 24).double()
    exact.load_state_dict({name: p.double() for name, p in layer.state_dict().items()})
    wide = x.detach().double().requires_grad_()
    exact(wide).backward(above.double())
    pairs = [(x, wide), (layer.weight, exact.weight), (layer.bias, exact.bias)]
    for found, expected in pairs:
        assert found.grad.dtype == dtype and found.grad.shape == found.shape
        error = (found.grad.double() - expected.grad).abs()
        assert (error <= torch.finfo(dtype).eps * expected.grad.abs() + 1e-5).all()


def test_autocast_decides_the_dtype(slow):
    layer = torch.nn.Linear(48, 24).bfloat16()
    with torch.no_grad(), forward_products(CPU), torch.autocast("cpu", torch.bfloat16):
        y = layer(numbers(40, 48, dtype=torch.float32))
    assert slow == [torch.bfloat16] and y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rows", "dtype"), [(31, torch.bfloat16), (64, torch.float32), (0, torch.float16)]
)
def test_what_gains_nothing_stays(slow, rows, dtype):
    x, weight = numbers(rows, 48, dtype=dtype), numbers(24, 48, dtype=dtype)
    expected = linear(x, weight)
    with forward_products(CPU):
        assert torch.equal(linear(x, weight=weight), expected)
    assert not slow


def test_it_ends_with_the_context(slow):
    layer = torch.nn.Linear(48, 24).bfloat16()
    with forward_products(CPU):
        pass
    layer(numbers(64, 48, dtype=torch.bfloat16))
    assert not slow


def test_a_processor_that_is_fast_keeps_its_own(slow, monkeypatch):
    monkeypatch.setattr(module, "gain", lambda _: 1.0)
    layer = torch.nn.Linear(48, 24).bfloat16()
    with forward_products(CPU):
        layer(numbers(64, 48, dtype=torch.bfloat16))
    assert not slow


def test_the_gain_is_measured():
    for dtype in HALF:
        assert 0 < module.gain(dtype) < 1e4
