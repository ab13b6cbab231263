import torch

from q2n.linalg.basis import Basis, balancing
from q2n.linalg.random_orthogonal import random_rotation
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_statistics_in_a_basis_equal_rotated_token_statistics():
    basis, needs = some_basis(6, 12), ~RequiredStatistics.NONE
    x, full = normal(5, 8, 12, seed=4), normal(5, 8, 12, seed=5)
    before = InputStatistics(12, needs, dtype=torch.float64)
    before.update(x, full)
    after = InputStatistics(12, needs, dtype=torch.float64)
    turn = lambda tokens: basis.inputs(tokens.flatten(0, 1)).view_as(tokens)  # noqa: E731
    after.update(turn(x), turn(full))
    found = before.in_basis(basis.inputs, basis.outputs)
    assert (found.tokens, found.sequences) == (40, 5)
    pairs = [(found, after), *zip(found.folds, after.folds, strict=True)]
    for one, other in pairs:
        torch.testing.assert_close(one.gram, other.gram, rtol=0, atol=1e-10)
        torch.testing.assert_close(one.cross, other.cross, rtol=0, atol=1e-10)
        assert torch.equal(one.gram, one.gram.T)
    torch.testing.assert_close(found.position_gram, after.position_gram, rtol=0, atol=1e-10)


def test_balancing_minimises_its_product():
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


def test_a_dead_channel_counts_as_the_others_do():
    """Not as one with next to no input, which would get all the noise."""
    weight, x = normal(6, 12), normal(30, 12, seed=1)
    x[:, 3] = 0
    found = balancing(weight, x.T @ x)
    assert 0.5 < found[3] / found.median() < 2
