"""Statistics of channels are sums over tokens, however these were batched."""

import pytest
import torch

from q2n.errors import InputError, NumericalError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics


def test_statistics_are_those_of_all_tokens():
    torch.manual_seed(0)
    x = torch.randn(30, 2, 6)
    statistics = InputStatistics(6, RequiredStatistics.GRAM | RequiredStatistics.SIZES)
    for part in x.split(7):
        statistics.update(part)
    rows = x.view(-1, 6)
    assert statistics.tokens == 60
    torch.testing.assert_close(statistics.sizes.total / 60, rows.abs().mean(0))
    assert torch.equal(statistics.sizes.largest, rows.abs().amax(0))
    torch.testing.assert_close(statistics.gram, rows.T @ rows)


def test_no_batch_changes_a_bit():
    x = torch.randn(64, 33, 40, generator=torch.Generator().manual_seed(0)).exp()
    totals = []
    for size in (1, 3, 64):
        statistics = InputStatistics(40, RequiredStatistics.SIZES)
        for part in x.split(size):
            statistics.update(part)
        totals.append(statistics.sizes.total)
    assert totals[0].dtype == torch.float32
    assert all(torch.equal(total, totals[0]) for total in totals)


def test_a_gram_matrix_must_be_asked_for():
    with pytest.raises(InputError, match="without"):
        _ = InputStatistics(6, RequiredStatistics.SIZES).gram


@pytest.mark.parametrize("gram", [True, False])
def test_a_bad_input_is_named(gram):
    required = RequiredStatistics.GRAM if gram else RequiredStatistics.NONE
    statistics = InputStatistics(3, required | RequiredStatistics.SIZES)
    statistics.update(torch.tensor([[1.0, torch.nan, 2.0]]))
    with pytest.raises(NumericalError, match="the layer"):
        statistics.require_finite("the layer")
