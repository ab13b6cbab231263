import oracles
import pytest
import torch
from two_inputs import two_inputs

from q2n.linalg import output_alpha
from q2n.linalg.output_alpha import per_group
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

ROWS, COLUMNS, SIZE, TOKENS = 7, 22, 8, 240  # two whole groups and one of 6 columns
GROUPS = 3
# per_group answers in float32 and adds 1e-6 to a unit diagonal
SAME = {"rtol": 0, "atol": 1e-5}
SEEDS = range(3)


def problem(seed, noise=0.3):
    """Weights, quantized weights, and inputs that are the full ones plus an error of which a
    part is correlated with them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, x_full = two_inputs(normal, TOKENS, COLUMNS, 0.7, noise)
    weight = normal(ROWS, COLUMNS)
    return weight, weight + 0.4 * normal(ROWS, COLUMNS), x, x_full


def moments(x, target):
    """`sum x x^T` and `sum target x^T`."""
    return x.T @ x, target.T @ x


def groups_of(weight, quantized, x, target, ridge, size=SIZE):
    gram, toward = moments(x, target)
    return per_group(quantized, gram, weight @ toward, ridge, size).double()


def rows_of(weight, quantized, x, target, ridge):
    gram, toward = moments(x, target)
    energy = ((quantized @ gram) * quantized).sum(1)
    missing = ((weight @ toward) * quantized).sum(1) - energy
    return (1 + missing / ((1 + ridge) * energy).clamp(min=1e-300)).unsqueeze(1)


@pytest.mark.parametrize("ridge", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("stream", ["own", "full_precision"])
@pytest.mark.parametrize("seed", SEEDS)
def test_factors_minimise_the_loss_on_the_tokens(seed, stream, ridge):
    weight, quantized, x, x_full = problem(seed)
    target = x if stream == "own" else x_full
    given = (weight, quantized, x, target)
    for size, found in ((SIZE, groups_of(*given, ridge)), (COLUMNS, rows_of(*given, ridge))):
        minimised = oracles.minimised_output_alpha(*given, size, ridge)
        regressed = oracles.least_squares_output_alpha(*given, size, ridge)
        torch.testing.assert_close(minimised, regressed, rtol=0, atol=1e-6)
        torch.testing.assert_close(found, regressed, **SAME)
        assert (found - 1).abs().max() > 0.01  # the test would see a step that does nothing


@pytest.mark.parametrize("size", [1, 5, 11])
def test_any_group_size_will_do(size):
    given = problem(4)
    expected = oracles.least_squares_output_alpha(*given, size, 0.2)
    assert expected.shape[1] == -(-COLUMNS // size)
    torch.testing.assert_close(groups_of(*given, 0.2, size), expected, **SAME)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_group_is_the_whole_row(seed, ridge):
    given = problem(seed)
    for size in (COLUMNS, 2 * COLUMNS):
        torch.testing.assert_close(
            groups_of(*given, ridge, size), rows_of(*given, ridge), rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_infinite_ridge_gives_one(seed):
    given = problem(seed)
    ones = torch.ones(ROWS, GROUPS, dtype=torch.float64)
    torch.testing.assert_close(groups_of(*given, 1e12), ones, rtol=0, atol=1e-9)
    torch.testing.assert_close(rows_of(*given, 1e12), ones[:, :1], rtol=0, atol=1e-9)


def test_a_ridge_pulls_factors_to_one():
    given = problem(0)
    for factors in (groups_of, rows_of):
        distances = [(factors(*given, ridge) - 1).norm(dim=1) for ridge in (0.0, 0.1, 1.0, 9.0)]
        for nearer, farther in zip(distances[1:], distances, strict=False):
            assert (nearer < farther).all()


def test_what_is_already_right_keeps_one():
    weight, _, x, _ = problem(0)
    ones = torch.ones(ROWS, GROUPS, dtype=torch.float64)
    for ridge in (0.0, 0.5):
        torch.testing.assert_close(groups_of(weight, weight, x, x, ridge), ones, **SAME)
        torch.testing.assert_close(rows_of(weight, weight, x, x, ridge), ones[:, :1], **SAME)


def test_noise_on_the_input_shrinks_rows():
    """With Q = W and x = x_full + noise the factor is that of a Wiener filter."""
    weight, _, _, x_full = problem(0)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(TOKENS, COLUMNS, generator=generator, dtype=torch.float64)
    noise -= x_full @ torch.linalg.lstsq(x_full, noise).solution  # no correlation at all
    signal = ((x_full @ weight.T) ** 2).sum(0)
    added = ((noise @ weight.T) ** 2).sum(0)
    alpha = rows_of(weight, weight, x_full + noise, x_full, 0.0).squeeze(1)
    torch.testing.assert_close(alpha, signal / (signal + added), rtol=1e-9, atol=0)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_rows_are_independent(ridge, monkeypatch):
    weight, quantized, x, x_full = problem(0)
    other = quantized.clone()
    other[3] *= -40
    others = [i for i in range(ROWS) if i != 3]
    for factors in (groups_of, rows_of):
        before = factors(weight, quantized, x, x_full, ridge)
        after = factors(weight, other, x, x_full, ridge)
        torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)
        assert not torch.allclose(after[3], before[3])
        some = [5, 0]
        alone = factors(weight[some], quantized[some], x, x_full, ridge)
        torch.testing.assert_close(alone, before[some], rtol=0, atol=1e-6)
    whole = groups_of(weight, quantized, x, x_full, ridge)
    monkeypatch.setattr(output_alpha, "_CHUNK", 2 * GROUPS**2)  # two rows at once
    parts = groups_of(weight, quantized, x, x_full, ridge)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_zero_rows_and_groups_keep_one(ridge):
    weight, quantized, x, x_full = problem(0)
    quantized[2] = 0
    quantized[4, SIZE : 2 * SIZE] = 0
    quantized[5, 2 * SIZE :] = 0
    alpha = groups_of(weight, quantized, x, x_full, ridge)
    assert (alpha[2] == 1).all() and alpha[4, 1] == 1 and alpha[5, 2] == 1
    torch.testing.assert_close(
        alpha,
        oracles.least_squares_output_alpha(weight, quantized, x, x_full, SIZE, ridge),
        **SAME,
    )
    rows = rows_of(weight, quantized, x, x_full, ridge)
    assert rows[2] == 1 and torch.isfinite(rows).all()


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_groups_without_input_keep_one(ridge):
    weight, quantized, x, x_full = problem(0)
    x[:, SIZE : 2 * SIZE] = 0
    alpha = groups_of(weight, quantized, x, x_full, ridge)
    assert (alpha[:, 1] == 1).all()
    expected = oracles.least_squares_output_alpha(weight, quantized, x, x_full, SIZE, ridge)
    torch.testing.assert_close(alpha, expected, **SAME)
    nothing = torch.zeros_like(x)
    assert (groups_of(weight, quantized, nothing, x_full, ridge) == 1).all()
    assert (rows_of(weight, quantized, nothing, x_full, ridge) == 1).all()


def test_the_units_of_the_input_do_not_matter():
    weight, quantized, x, x_full = problem(0)
    for ridge in (0.0, 0.5):
        for factors in (groups_of, rows_of):
            expected = factors(weight, quantized, x, x_full, ridge)
            scaled = factors(weight, quantized, 1e4 * x, 1e4 * x_full, ridge)
            torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)


def test_factors_do_not_depend_on_batching_or_merging():
    weight, quantized, x, x_full = (t.float() for t in problem(0))

    def gathered(*cuts):
        statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
        for a, b in zip((0, *cuts), (*cuts, TOKENS), strict=True):
            statistics.update(x[a:b], x_full[a:b])
        return statistics

    first, second = (
        InputStatistics(COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
        for _ in range(2)
    )
    first.update(x[:90], x_full[:90])
    second.update(x[90:], x_full[90:])
    expected = oracles.least_squares_output_alpha(
        *(t.double() for t in (weight, quantized, x, x_full)), SIZE, 0.3
    )
    for statistics in (gathered(), gathered(1, 77, 200), first + second, second + first):
        goal = weight @ statistics.cross
        groups = per_group(quantized, statistics.gram, goal, 0.3, SIZE)
        # sums of 240 products in float32
        torch.testing.assert_close(groups.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_groups_that_say_the_same_share_the_change(ridge):
    """Two equal groups on equal inputs: A is singular, and the smallest change is even."""
    weight, quantized, x, x_full = problem(0)
    x[:, SIZE : 2 * SIZE] = x[:, :SIZE]
    quantized[:, SIZE : 2 * SIZE] = quantized[:, :SIZE]
    alpha = groups_of(weight, quantized, x, x_full, ridge)
    torch.testing.assert_close(alpha[:, 0], alpha[:, 1], rtol=0, atol=1e-6)
    expected = oracles.least_squares_output_alpha(weight, quantized, x, x_full, SIZE, ridge)
    torch.testing.assert_close(alpha, expected, **SAME)


@pytest.mark.parametrize(("tokens", "outlier"), [(2, 1.0), (20, 1.0), (20, 1e3)])
@pytest.mark.parametrize("filtered", [False, True])
def test_singular_systems_stay_finite_without_a_ridge(tokens, outlier, filtered):
    """More groups than directions in float32, where rounding makes A indefinite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 128, generator=generator)
    x[:, 3] *= outlier
    x[0] *= outlier
    weight = torch.randn(6, 128, generator=generator)
    quantized = weight + 0.3 * torch.randn(6, 128, generator=generator)
    gram = x.T @ x
    goal = weight @ gram
    if filtered:
        kept = torch.linalg.eigh(gram)[1][:, -2:]
        gram, goal = kept @ kept.T @ gram, goal @ kept @ kept.T
    for size in (4, 8):
        alpha = per_group(quantized, gram, goal, 0.0, size)
        assert torch.isfinite(alpha).all()
        if tokens == 2:  # there are enough groups to fit both tokens
            scaled = quantized * alpha.repeat_interleave(size, 1)
            before, after = ((x @ (weight - q).T).norm() for q in (quantized, scaled))
            assert after < 0.1 * before
