import numpy as np
import pytest
import torch
from oracles import trellis as oracle

from q2n.kernels.column_sweep import sweep
from q2n.kernels.trellis_search import TrellisRule
from q2n.linalg import trellis_code
from q2n.linalg.factor import feedback

COLUMNS = 40
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, COLUMNS, generator=GENERATOR, dtype=torch.float64)
MATRIX = feedback(X.T @ X, 0.01).matrix
WIDTHS = pytest.mark.parametrize("bits", [2, 3, 4])


def rule(bits):
    return TrellisRule(trellis_code.values(bits).double(), bits)


def gaussian(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def rounded(weight, bits, matrix=MATRIX):
    return sweep(weight, matrix, rule(bits), block_size=16)


@pytest.mark.parametrize(("bits", "rows"), [(2, 6), (3, 4), (4, 3)])
def test_every_sequence_is_tried_and_the_nearest_found(bits, rows):
    """Of those that end in the same state."""
    weight, digits = gaussian(COLUMNS, rows), trellis_code.DIGITS[bits]
    found = rounded(weight, bits, torch.zeros_like(MATRIX))
    values = rule(bits).values.numpy()
    codes, points = oracle.all_sequences(rows, values, 2**bits, digits)
    for column, code, error in zip(weight.numpy(), found.codes.numpy(), found.error, strict=True):
        distance = ((points - column) ** 2).sum(1)
        same = (codes[:, rows - digits :] == code[rows - digits :]).all(1)
        best = np.flatnonzero(same)[distance[same].argmin()]
        np.testing.assert_array_equal(codes[best], code)
        np.testing.assert_allclose(column - error.numpy(), points[best], atol=1e-12)


def least_costs(column, values, base):
    """Of the nearest sequence with a free start, by the d - 1 codes with which it ends."""
    best = values.new_zeros(len(values) // base)
    for x in column:
        best = (best.repeat(base) + (x - values).square()).view(-1, base).amin(1)
    return best


@pytest.mark.slow
@WIDTHS
def test_start_is_nearly_the_best(bits):
    """Against every start: within 2 % of the distance, on average over twelve columns. A circle is
    no nearer than the nearest sequence that ends like it."""
    weight, trellis_rule = gaussian(12, 100), rule(bits)
    found = (trellis_rule.nearest(weight)[1] - weight).square().sum(1)
    least = torch.empty_like(found)
    for place, column in enumerate(weight):
        bound = least_costs(column, trellis_rule.values, 2**bits)
        may = (bound <= found[place] * (1 + 1e-12)).nonzero().flatten()
        states = trellis_rule.circles_from(column.expand(len(may), -1), may)
        least[place] = (trellis_rule.values[states] - column).square().sum(1).min()
    assert (least <= found * (1 + 1e-12)).all()
    assert found.sum() < 1.02 * least.sum()


@WIDTHS
@pytest.mark.parametrize("rows", [9, 160, 330])
def test_each_column_is_rounded_from_its_updated_value(bits, rows):
    weight = gaussian(COLUMNS, rows)
    found = rounded(weight, bits)
    updated = weight + MATRIX.T @ found.error
    codes, points = rule(bits).nearest(updated)
    assert torch.equal(found.codes, codes.to(torch.uint8))
    torch.testing.assert_close(weight - found.error, points)


def test_segments_know_nothing_of_each_other():
    weight = gaussian(COLUMNS, 330)
    whole = rounded(weight, 2)
    for low, high in ((0, 110), (110, 220), (220, 330)):
        assert torch.equal(whole.codes[:, low:high], rounded(weight[:, low:high], 2).codes)
