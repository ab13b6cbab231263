import numpy as np
import pytest
import torch
from oracles.quip import kronecker

from q2n.linalg.random_orthogonal import (
    factors,
    haar_factor,
    mixing_factors,
    random_rotation,
    random_signs,
)

MODES = ("kronecker", "blocks", "blocks_unpermuted")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (4096, (64, 64)),
        (8192, (128, 64)),
        (11008, (688, 16)),
        (14336, (64, 224)),
        (28672, (448, 64)),
        (576, (24, 24)),
        (13, (13, 1)),
        (2, (2, 1)),
        (1, (1, 1)),
    ],
)
def test_factors_are_the_released_codes(width, expected):
    assert factors(width) == expected


def parts(rotation):
    """B1, B2, P_in, P_out."""
    orders = (rotation.into, rotation.out)
    natural = torch.arange(rotation.size)
    blocks = (factor.blocks for factor in rotation.factors)
    return *blocks, *(natural if order is None else order for order in orders)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 2, 7, 24, 30])
def test_a_rotation_is_its_dense_matrix(width, mode):
    """A prime is one dense block; 30 has factors of different size."""
    rotation = random_rotation(width, mode, seed=5)
    dense = kronecker(*(part.numpy() for part in parts(rotation)))
    # sums of 30 products in float64
    np.testing.assert_allclose(dense @ dense.T, np.eye(width), atol=1e-13)
    x = normal(4, width)
    np.testing.assert_allclose(rotation.apply(x), x.numpy() @ dense.T, atol=1e-13)
    for blocks in parts(rotation)[:2]:
        np.testing.assert_allclose(torch.linalg.det(blocks), torch.ones(len(blocks)), atol=1e-12)


def test_what_the_modes_differ_in():
    shared, blocks, plain = (random_rotation(24, mode, seed=1) for mode in MODES)
    assert [len(factor.blocks) for factor in shared.factors] == [1, 1]
    first, second = (factor.blocks for factor in blocks.factors)
    assert first.shape == (6, 4, 4) and second.shape == (4, 6, 6)
    assert plain.into is None and plain.out is None
    assert torch.equal(plain.factors[0].blocks, first)
    assert not torch.equal(blocks.into, torch.arange(24))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    "sample",
    [
        lambda *key: parts(random_rotation(12, "blocks", *key)),
        lambda *key: [haar_factor(9, *key).blocks],
        lambda *key: [mixing_factors(18, *key)[0].blocks],
        lambda *key: [random_signs(64, *key)],
    ],
)
def test_a_seed_repeats_and_its_streams_are_independent(sample):
    assert all(torch.equal(a, b) for a, b in zip(sample(3), sample(3, 0), strict=True))
    for key in ((4,), (3, 1), (3 + 2**32,)):  # the words above 32 bits count
        assert not torch.equal(sample(3)[0], sample(*key)[0])


def test_a_seed_is_the_same_rotation_for_ever():
    """A stored layer is its seed. These values were written down when it was made."""
    first, second, into, _ = parts(random_rotation(6, "kronecker", 7))
    found = [*first[0, 0].tolist(), *second[0, 0].tolist()]
    expected = [0.932640419434, -0.360807217276, -0.323077431670, 0.103523082417, -0.940693331831]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    assert into.tolist() == [1, 2, 4, 3, 5, 0]


def test_mixing_factors_are_hadamard_where_there_are_any():
    assert [(f.kind, f.size) for f in mixing_factors(48, 0)] == [("hadamard", 12), ("hadamard", 4)]
    assert [(f.kind, f.size) for f in mixing_factors(18, 0)] == [("dense", 9), ("hadamard", 2)]
    assert mixing_factors(1, 0) == ()


def test_signs_are_even():
    """The mean of 4000 signs has standard error 0.016."""
    signs = random_signs(4000, 0)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 * 0.016


def test_blocks_are_uniform():
    """The angle of a 2 x 2 block is uniform, the entries of a larger one have mean 0 and mean
    square 1 / size; over 2000 draws, 4 standard errors."""
    angles = []
    entries = []
    for seed in range(500):
        rotation = random_rotation(8, "blocks", seed)  # 4 x 2
        first, second = (factor.blocks for factor in rotation.factors)
        angles += torch.atan2(second[:, 1, 0], second[:, 0, 0]).tolist()
        entries.append(first[0])
    count, _ = np.histogram(angles, bins=8, range=(-np.pi, np.pi))
    assert abs(count - 250).max() < 4 * np.sqrt(250)
    entries = torch.stack(entries)
    assert entries.mean(0).abs().max() < 4 * (1 / 4 / 500) ** 0.5
    assert (entries.square().mean(0) - 1 / 4).abs().max() < 4 * (3 / 24 / 500) ** 0.5
