import oracles
import pytest
import torch
from two_inputs import two_inputs

from q2n.errors import NumericalError
from q2n.linalg.correction import corrector
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

ROWS, COLUMNS, TOKENS = 5, 18, 200
SEEDS = range(3)


def problem(seed, noise=0.3):
    """A weight, and inputs that are the full ones plus an error partly correlated with them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, x_full = two_inputs(normal, TOKENS, COLUMNS, 0.5, noise)
    return normal(ROWS, COLUMNS), x, x_full


def corrected(weight, x, x_full, ridge):
    return weight + weight @ corrector(x.T @ x, (x_full - x).T @ x, ridge, name="h.0.up")


@pytest.mark.parametrize("ridge", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_corrected_weight_minimises_the_loss_on_tokens(seed, ridge):
    weight, x, x_full = problem(seed)
    found = corrected(weight, x, x_full, ridge)
    expected = oracles.minimised_correction(weight, x, x_full, ridge)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - weight).norm() > 0.05 * weight.norm()


@pytest.mark.parametrize("seed", SEEDS)
def test_infinite_ridge_gives_the_original_weight(seed):
    weight, x, x_full = problem(seed)
    torch.testing.assert_close(corrected(weight, x, x_full, 1e12), weight, rtol=0, atol=1e-9)


def test_a_ridge_pulls_the_weight_to_the_original():
    weight, x, x_full = problem(0)
    moved = [(corrected(weight, x, x_full, r) - weight).norm() for r in (0.0, 0.1, 1.0, 10.0)]
    assert moved == sorted(moved, reverse=True) and moved[0] > 2 * moved[-1]


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_an_input_without_error_changes_nothing(ridge):
    weight, x, _ = problem(0)
    torch.testing.assert_close(corrected(weight, x, x, ridge), weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_differ_by_a_constant_without_ridge(seed):
    """`sum |W x_full - Q x|^2 = sum |W' x - Q x|^2 + const`, whatever Q is."""
    weight, x, x_full = problem(seed)
    goal = x @ corrected(weight, x, x_full, 0.0).T
    constant = ((x_full @ weight.T - goal) ** 2).sum()
    generator = torch.Generator().manual_seed(seed)
    for size in (0.0, 0.1, 1.0, 30.0):
        q = weight + size * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        full, against_goal = (((t - x @ q.T) ** 2).sum() for t in (x_full @ weight.T, goal))
        torch.testing.assert_close(full, against_goal + constant, rtol=1e-11, atol=0)


def test_the_units_of_the_input_do_not_matter():
    weight, x, x_full = problem(0)
    expected = corrected(weight, x, x_full, 0.3)
    scaled = corrected(weight, 1e4 * x, 1e4 * x_full, 0.3)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-9)


def test_it_does_not_matter_how_tokens_were_merged():
    weight, x, x_full = problem(0)
    expected = oracles.minimised_correction(weight, x, x_full, 0.1)
    parts = []
    for tokens in (slice(0, 70), slice(70, None)):
        parts.append(InputStatistics(COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS))
        parts[-1].update(x[tokens], x_full[tokens])
    for statistics in (parts[0] + parts[1], parts[1] + parts[0]):
        matrix = corrector(statistics.gram, statistics.residual, 0.1, name="h.0.up")
        assert matrix.dtype == torch.float32
        # float32 moments
        torch.testing.assert_close(weight + weight @ matrix.double(), expected, rtol=0, atol=2e-5)


def test_what_float32_cannot_factor_is_done_in_float64():
    gram = torch.full((COLUMNS, COLUMNS), 2.0**24 - 2) + torch.eye(COLUMNS)
    assert torch.linalg.cholesky_ex(gram).info > 0
    change = torch.randint(-4, 5, gram.shape, generator=torch.Generator().manual_seed(0)).float()
    matrix = corrector(gram, -change.abs(), 0.0, name="h.0.up")
    assert matrix.dtype == torch.float32
    expected = torch.linalg.solve(gram.double(), -change.abs().double().T).T
    torch.testing.assert_close(matrix.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_gram_without_ridge_names_the_layer(dtype):
    few = slice(0, 6)  # tokens, for 18 columns
    _, x, x_full = (t.to(dtype)[few] for t in problem(0))
    gram, residual = x.T @ x, (x_full - x).T @ x
    with pytest.raises(NumericalError, match=r"h\.0\.up.*ridge of 0; raise it$"):
        corrector(gram, residual, 0.0, name="h.0.up")
    assert torch.isfinite(corrector(gram, residual, 0.01, name="h.0.up")).all()


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_without_input_are_left_out_of_the_correction(dtype, ridge):
    weight, x, x_full = (t.to(dtype) for t in problem(0))
    dead, live = [4, 11], [j for j in range(COLUMNS) if j not in (4, 11)]
    x[:, dead] = 0
    found = corrected(weight, x, x_full, ridge)
    assert torch.equal(found[:, dead], weight[:, dead])
    # they still tell what the full-precision output is
    inputs = x[:, live]
    gram, cross = inputs.T @ inputs, (x_full - x).T @ inputs
    shift = ridge * gram.diagonal().mean() * torch.eye(len(live), dtype=dtype)
    expected = weight[:, live] + weight @ cross @ torch.linalg.inv(gram + shift)
    torch.testing.assert_close(found[:, live], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(found, weight)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_a_site_without_any_input_is_left_uncorrected(ridge):
    weight, x, x_full = problem(0)
    assert torch.equal(corrected(weight, 0 * x, x_full, ridge), weight)


def test_moments_are_left_as_they_are():
    _, x, x_full = problem(0)
    gram, residual = x.T @ x, (x_full - x).T @ x
    before = gram.clone(), residual.clone()
    corrector(gram, residual, 0.5, name="h.0.up")
    assert torch.equal(gram, before[0]) and torch.equal(residual, before[1])
