"""What a segment of rows is rounded from, beside a minimiser of the loss."""

import pytest
import torch

from q2n.kernels.column_sweep import Sweep
from q2n.kernels.row_segments import even_borders, sweep_segments
from q2n.linalg.factor import feedback

ROWS, COLUMNS = 30, 6


@pytest.mark.parametrize("borders", [[0, 30], [0, 7, 8, 20, 30], [*range(31)]])
def test_later_rows_make_up_for_earlier_ones(borders):
    """The target of a segment is where its rows would be if they and all later ones, free to take
    any value, were to make tr(F E H E^T) least, whatever H is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, ROWS, generator=generator, dtype=torch.float64)
    moments = x.T @ x
    weight = torch.randn(COLUMNS, ROWS, generator=generator, dtype=torch.float64)
    matrix = feedback(moments, 0.0).matrix
    targets = []

    def rounded(target, a, b):
        targets.append((a, b, target))
        codes = (2 * target).round()
        return Sweep((codes + 100).to(torch.uint8), target - codes / 2)

    swept = sweep_segments(weight, matrix, borders, rounded)
    assert [x[:2] for x in targets] == list(zip(borders, borders[1:], strict=False))
    torch.testing.assert_close(swept.error, weight - (swept.codes.double() - 100) / 2)
    for a, b, target in targets:
        before, free = slice(0, a), slice(a, ROWS)
        least = (
            -torch.linalg.solve(moments[free, free], moments[free, before])
            @ (swept.error.T[before])
        )
        torch.testing.assert_close(target.T, weight.T[a:b] - least[: b - a])


def test_segments_have_64_rows():
    assert even_borders(130) == [0, 64, 128, 130] and even_borders(64) == [0, 64]
