"""Sums that travel: added from outside they are the statistics of all tokens."""

import pytest
import torch

from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics

MOMENTS = RequiredStatistics.GRAM | RequiredStatistics.CROSS


def gathered(required, x, first_window=0) -> InputStatistics:
    statistics = InputStatistics(13, required, cross_stride=2, first_window=first_window)
    for batch in x.split(2):
        statistics.update(batch, 1.5 * batch)
    return statistics


@pytest.mark.parametrize(
    "required",
    [
        RequiredStatistics.GRAM,
        MOMENTS,
        RequiredStatistics.GRAM | RequiredStatistics.POSITIONS,
        MOMENTS | RequiredStatistics.FOLDS,
    ],
)
@pytest.mark.parametrize("border", [2, 3])
def test_added_sums_are_those_of_all_windows(required, border):
    """At an odd border too the folds are those of one process."""
    x = torch.randn(6, 7, 13, generator=torch.Generator().manual_seed(0))
    whole, here = gathered(required, x), gathered(required, x[:border])
    there = gathered(required, x[border:], first_window=border)
    for mine, other in zip(here.sums(), there.sums(), strict=True):
        mine += other
    here.set_counts([a + b for a, b in zip(here.counts(), there.counts(), strict=True)])
    assert here.counts() == whole.counts()
    assert torch.equal(here.gram, whole.gram)
    assert torch.equal(here.gram, here.gram.T)
    if RequiredStatistics.CROSS in required:
        assert torch.equal(here.residual, whole.residual)
    if RequiredStatistics.POSITIONS in required:
        assert torch.equal(here.position_gram, whole.position_gram)
    if RequiredStatistics.FOLDS in required:
        for mine, other in zip(here.folds, whole.folds, strict=True):
            assert torch.equal(mine.gram, other.gram)


def test_no_more_than_a_triangle_and_a_panel_travels():
    statistics = InputStatistics(768)
    assert sum(part.numel() for part in statistics.sums()) == 768 * 768 * 7 // 12
