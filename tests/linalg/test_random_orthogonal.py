import numpy as np
import pytest
import torch
from oracles.quip import kronecker

from q2n.linalg.basis import Basis, balancing
from q2n.linalg.random_orthogonal import factors, random_rotation
from q2n.linalg.statistics import InputStatistics, RequiredStatistics

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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 2, 7, 24, 30])
def test_a_rotation_is_its_dense_matrix(width, mode):
    """A prime is one dense block; 30 has factors of different size."""
    rotation = random_rotation(width, mode, seed=5)
    dense = kronecker(*(t.numpy() for t in (rotation.first, rotation.second)),
                      rotation.into.numpy(), rotation.out.numpy())  # fmt: skip
    # sums of 30 products in float64
    np.testing.assert_allclose(dense @ dense.T, np.eye(width), atol=1e-13)
    x = normal(4, width)
    np.testing.assert_allclose(rotation.apply(x), x.numpy() @ dense.T, atol=1e-13)
    np.testing.assert_allclose(rotation.undo(rotation.apply(x)), x, atol=1e-13)
    w = normal(width, 3)
    np.testing.assert_allclose(rotation.apply_to_outputs(w), dense @ w.numpy(), atol=1e-13)
    np.testing.assert_allclose(rotation.undo_at_outputs(w), dense.T @ w.numpy(), atol=1e-13)
    for blocks in (rotation.first, rotation.second):
        np.testing.assert_allclose(torch.linalg.det(blocks), torch.ones(len(blocks)), atol=1e-12)


def test_what_the_modes_differ_in():
    shared, blocks, plain = (random_rotation(24, mode, seed=1) for mode in MODES)
    assert (len(shared.first), len(shared.second)) == (1, 1)
    assert blocks.first.shape == (6, 4, 4) and blocks.second.shape == (4, 6, 6)
    assert torch.equal(plain.into, torch.arange(24)) and torch.equal(plain.out, plain.into)
    assert torch.equal(plain.first, blocks.first)
    assert not torch.equal(blocks.into, plain.into)
    assert not torch.equal(blocks.first[0], blocks.first[1])


def test_a_seed_is_a_rotation_and_its_streams_are_independent():
    first, again = random_rotation(12, "blocks", 3), random_rotation(12, "blocks", 3)
    assert torch.equal(first.first, again.first) and torch.equal(first.out, again.out)
    for other in (random_rotation(12, "blocks", 4), random_rotation(12, "blocks", 3, stream=1)):
        assert not torch.equal(first.first, other.first)
    wide = random_rotation(12, "blocks", 3 + 2**32)  # the words above 32 bits count
    assert not torch.equal(first.first, wide.first)


def test_a_seed_is_the_same_rotation_for_ever():
    """A stored layer is its seed. These values were written down when it was made."""
    rotation = random_rotation(6, "kronecker", 7)
    found = [*rotation.first[0, 0].tolist(), *rotation.second[0, 0].tolist()]
    expected = [0.932640419434, -0.360807217276, -0.323077431670, 0.103523082417, -0.940693331831]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    assert rotation.into.tolist() == [1, 2, 4, 3, 5, 0]


def test_blocks_are_uniform():
    """The angle of a 2 x 2 block is uniform, the entries of a larger one have mean 0 and mean
    square 1 / size; over 2000 draws, 4 standard errors."""
    angles = []
    entries = []
    for seed in range(500):
        rotation = random_rotation(8, "blocks", seed)  # 4 x 2
        angles += torch.atan2(rotation.second[:, 1, 0], rotation.second[:, 0, 0]).tolist()
        entries.append(rotation.first[0])
    count, _ = np.histogram(angles, bins=8, range=(-np.pi, np.pi))
    assert abs(count - 250).max() < 4 * np.sqrt(250)
    entries = torch.stack(entries)
    assert entries.mean(0).abs().max() < 4 * (1 / 4 / 500) ** 0.5
    assert (entries.square().mean(0) - 1 / 4).abs().max() < 4 * (3 / 24 / 500) ** 0.5


def some_basis(rows, columns):
    return Basis(
        random_rotation(rows, "kronecker", 1),
        random_rotation(columns, "blocks", 2),
        torch.rand(columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5,
    )


def test_a_basis_keeps_the_layers_output():
    weight, x, basis = normal(6, 12), normal(20, 12, seed=1), some_basis(6, 12)
    turned = basis.inputs(x) @ basis.weight(weight).T
    torch.testing.assert_close(turned, basis.left.apply(x @ weight.T), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.weight_back(basis.weight(weight)), weight, rtol=0, atol=1e-12)
    same = Basis()
    assert torch.equal(same.weight(weight), weight) and torch.equal(same.inputs(x), x)


def test_statistics_in_a_basis_are_those_of_the_tokens_in_it():
    basis, needs = some_basis(6, 12), ~RequiredStatistics.NONE
    x, full = normal(5, 8, 12, seed=4), normal(5, 8, 12, seed=5)
    before = InputStatistics(12, needs, dtype=torch.float64)
    before.update(x, full)
    after = InputStatistics(12, needs, dtype=torch.float64)
    turn = lambda tokens: basis.inputs(tokens.flatten(0, 1)).view_as(tokens)  # noqa: E731
    after.update(turn(x), turn(full))
    found = before.in_basis(basis.inputs)
    assert (found.tokens, found.sequences) == (40, 5)
    pairs = [(found, after), *zip(found.folds, after.folds, strict=True)]
    for one, other in pairs:
        torch.testing.assert_close(one.gram, other.gram, rtol=0, atol=1e-10)
        torch.testing.assert_close(one.cross, other.cross, rtol=0, atol=1e-10)
        assert torch.equal(one.gram, one.gram.T)
    torch.testing.assert_close(found.position_gram, after.position_gram, rtol=0, atol=1e-10)


def test_no_small_change_of_the_balancing_lowers_its_product():
    weight, x = normal(6, 12), normal(30, 12, seed=1) * torch.logspace(0, -1, 12)
    gram = x.T @ x
    s = balancing(weight, gram)

    def product(s):
        return (gram.diagonal() / s**2).sum() * (weight * s).square().sum()

    for seed in range(20):
        other = s * (1 + 0.1 * normal(12, seed=seed))
        assert product(s) <= product(other)
    dead = gram.clone()
    dead[3], dead[:, 3] = 0, 0
    assert (balancing(weight, dead) > 0).all()
