"""Which float32 product is taken, and that the setting ends with the block that asked for it."""

import pytest
import torch

from q2n.linalg import products
from q2n.linalg.products import LEAST_GAIN, Probe, fast_products, in_two_parts
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

CPU = torch.device("cpu")
ROUNDED = 2e-3
"""Relative error of a product of numbers rounded to bfloat16."""

needs_switch = pytest.mark.skipif(products._switch() is None, reason="torch has no such setting")


def precision():
    return products._switch().fp32_precision


def probed(monkeypatch, gain, error):
    monkeypatch.setattr(products, "probe", lambda: Probe(gain, error))


@pytest.mark.parametrize(
    ("gain", "error", "float32", "bfloat16"),
    [
        (2.0, 1e-7, True, True),
        (2.0, ROUNDED, False, True),
        (LEAST_GAIN - 0.01, 1e-7, False, False),
        (1.0, ROUNDED, False, False),
    ],
)
def test_only_a_faster_exact_product_serves(gain, error, float32, bfloat16):
    probe = Probe(gain, error)
    assert probe.serves(torch.float32) is float32
    assert probe.serves(torch.float16) is float32
    assert probe.serves(torch.bfloat16) is bfloat16


@needs_switch
def test_the_setting_is_open_inside_alone(monkeypatch):
    probed(monkeypatch, 2.0, 1e-7)
    before = precision()
    with pytest.raises(ZeroDivisionError), fast_products(CPU, torch.float32):
        assert precision() == "bf16"
        raise ZeroDivisionError
    assert precision() == before


@needs_switch
def test_factors_that_would_be_rounded_keep_the_setting(monkeypatch):
    probed(monkeypatch, 8.0, ROUNDED)
    before = precision()
    with fast_products(CPU, torch.float32):
        assert precision() == before
        with fast_products(CPU, torch.bfloat16):
            assert precision() == "bf16"
    for device in ("meta", "cuda"):
        with fast_products(torch.device(device), torch.bfloat16):
            assert precision() == before


def test_two_parts_are_the_number():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    high, low = in_two_parts(1e6 * x)
    assert high.dtype == low.dtype == torch.bfloat16
    away = (high.double() + low.double() - 1e6 * x).abs()
    assert (away <= 2**-16 * 1e6 * x.abs()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_residual_moment_on_a_gpu_is_exact(dtype, stride):
    x = torch.randn(2, 150, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    x_full = (x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).to(dtype)
    both = RequiredStatistics.GRAM | RequiredStatistics.CROSS
    found = []
    for device, wide in (("cpu", torch.float64), ("cuda", torch.float32)):
        statistics = InputStatistics(70, both, device, wide, cross_stride=stride)
        statistics.update(x.to(device), x_full.to(device))
        found.append(statistics.residual.cpu().double())
    assert (found[1] - found[0]).norm() / found[0].norm() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gram_matrix_on_a_gpu_is_exact(dtype):
    x = torch.randn(300, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    statistics = InputStatistics(70, RequiredStatistics.GRAM, "cuda")
    statistics.update(x.cuda())
    exact = x.double().T @ x.double()
    assert (statistics.gram.cpu() - exact).norm() / exact.norm() < 1e-5


@needs_switch
def test_the_probe_leaves_the_setting():
    before = precision()
    products.probe.cache_clear()
    probe = products.probe()
    assert precision() == before
    assert probe.gain > 0 and probe.error < ROUNDED * 2
    assert products.probe() is probe  # once per process


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gram_matrix_is_exact_either_way(monkeypatch, dtype):
    """To the rounding of float32 sums, whatever oneDNN does with factors on this processor."""
    x = torch.randn(300, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = x.double().T @ x.double()
    for gain in (1.0, 2.0):
        probed(monkeypatch, gain, products.probe().error)
        statistics = InputStatistics(70, RequiredStatistics.GRAM)
        statistics.update(x)
        away = (statistics.gram - exact).norm() / exact.norm()
        assert away < 1e-6
