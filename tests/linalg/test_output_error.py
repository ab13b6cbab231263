import pytest
import torch

from q2n.linalg.output_error import OutputError, energy


def test_error_from_gram_equals_error_on_tokens():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    quantized = weight + 0.3 * torch.randn(7, 12, generator=generator, dtype=torch.float64)
    alpha = 1 + 0.1 * torch.randn(7, generator=generator, dtype=torch.float64)
    error = OutputError.of(weight, quantized, x.T @ x)
    whole = ((x @ weight.T) ** 2).sum()
    plain = ((x @ (weight - quantized).T) ** 2).sum() / whole
    scaled = ((x @ (weight - alpha[:, None] * quantized).T) ** 2).sum() / whole
    assert error.relative() == pytest.approx(float(plain), rel=1e-12)
    assert error.relative(alpha) == pytest.approx(float(scaled), rel=1e-12)


def test_a_layer_without_output_has_no_error():
    assert OutputError.of(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(3, 3)).relative() == 0


def test_energy_from_gram_equals_energy_on_tokens():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    rows = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    assert energy(rows, x.T @ x) == pytest.approx(float((x @ rows.T).square().sum()), rel=1e-12)
