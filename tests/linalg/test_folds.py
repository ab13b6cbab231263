import pytest
import torch

from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

REQUIRED = RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS


def folded(*batches):
    statistics = InputStatistics(6, REQUIRED)
    for x in batches:
        statistics.update(x, 2 * x)
    return statistics


def test_folds_sum_to_the_whole_and_alternate_windows():
    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(0))
    statistics = folded(x[:3], x[3:]) + folded(x[:2])
    plain = InputStatistics(6, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    plain.update(torch.cat([x, x[:2]]), 2 * torch.cat([x, x[:2]]))
    first, second = statistics.folds
    assert first.tokens + second.tokens == statistics.tokens == plain.tokens
    assert abs(first.tokens - second.tokens) <= 7
    torch.testing.assert_close(statistics.gram, plain.gram)
    torch.testing.assert_close(statistics.cross, plain.cross)
    torch.testing.assert_close(first.gram + second.gram, plain.gram)


def test_single_window_is_unfolded_loose_tokens_are_halved():
    x = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0))
    assert folded(x).folds == []
    first, second = folded(x[0]).folds
    assert {first.tokens, second.tokens} == {3, 4}
    with pytest.raises(InputError, match="FOLDS"):
        InputStatistics(6).folds  # noqa: B018


def test_odd_window_goes_to_the_smaller_fold():
    window = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0))
    first, second = folded(window, window, window).folds
    assert sorted([first.tokens, second.tokens]) == [7, 14]


def test_neighbouring_windows_lie_in_different_folds():
    windows = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))
    even, odd = (InputStatistics(6) for _ in range(2))
    even.update(windows[::2])
    odd.update(windows[1::2])
    first, second = folded(windows).folds
    assert torch.equal(first.gram, even.gram) and torch.equal(second.gram, odd.gram)
