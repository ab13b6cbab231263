import numpy as np
import pytest
import torch
from oracles.cayley import cayley_transform, length_of, released_step

from q2n.linalg.cayley import cayley_step, retracted

SIZES = [1, 2, 7, 32]


def orthogonal(size, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square)[0]


def gradients(size, scale, seed=1, count=3):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-4, 1.0], ids=["short", "as long as allowed"])
@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_released_one(size, scale):
    q, g = 1.01 * orthogonal(size), gradients(size, scale)  # lengths are brought back too
    found = cayley_step(q, g, 1.5)
    for one, slope, next_one in zip(q, g, found, strict=True):
        expected = released_step(one.T.numpy(), slope.T.numpy(), 1.5).T
        np.testing.assert_allclose(next_one.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0], ids=["short", "as long as allowed"])
@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_near_the_cayley_transform(size, scale):
    q, g = orthogonal(size), gradients(size, scale)
    for one, slope, found in zip(q, g, cayley_step(q, g, 1.5), strict=True):
        length = length_of(one.numpy(), slope.numpy(), 1.5)
        expected = cayley_transform(one.numpy(), slope.numpy(), length)
        turn = slope @ one.T
        half = length / 2 * float(torch.linalg.matrix_norm((turn - turn.T) / 2, 2))
        # five rounds shrink the first guess's distance, at most 2 half + |a G|, by half each
        first = 2 * half + length * float(torch.linalg.matrix_norm(slope, 2))
        assert np.abs(found.numpy() - expected).max() <= first * half**5 + 1e-13


def test_steps_go_down():
    goal, q = orthogonal(16, seed=5, count=1), orthogonal(16, seed=6, count=1)
    goal, q = (x * torch.linalg.det(x).sign() ** (torch.arange(16) == 0) for x in (goal, q))
    before = float((q - goal).square().sum())
    for _ in range(100):
        q = cayley_step(q, q - goal, 0.5)
    assert float((q - goal).square().sum()) < 0.05 * before


def test_many_steps_stay_orthogonal():
    q = orthogonal(64, count=2).float()
    for step in range(100):
        # a slope of random numbers, as long as the published rate allows
        q = cayley_step(q, gradients(64, 1e-2, seed=step, count=2).float(), 1.5)
    assert (q @ q.mT - torch.eye(64)).abs().max() < 1e-5


def test_steps_turn_from_the_left():
    q, other, g = orthogonal(9), orthogonal(9, seed=8), gradients(9, 0.1)
    found = cayley_step(q @ other, g @ other, 1.5)
    torch.testing.assert_close(found, cayley_step(q, g, 1.5) @ other, rtol=0, atol=1e-12)


def test_retraction_is_orthogonal_and_near():
    q = orthogonal(24)
    bent = q + gradients(24, 1e-4)
    found = retracted(bent.float())
    assert found.dtype == torch.float32
    assert (found.double() @ found.double().mT - torch.eye(24)).abs().max() < 1e-6
    assert (found - bent).abs().max() < 2e-3
    for same in (q, -q):  # whatever signs a QR decomposition prefers
        torch.testing.assert_close(retracted(same), same, rtol=0, atol=1e-14)
