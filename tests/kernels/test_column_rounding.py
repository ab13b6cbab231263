"""The rules but the uniform one, whose tests are test_column_sweep.py and test_gptq.py."""

import pytest
import torch

from q2n.kernels.column_rounding import CodebookRule, SplitRule
from q2n.kernels.column_sweep import sweep
from q2n.linalg.factor import feedback

ROWS, COLUMNS = 37, 40
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(COLUMNS, ROWS, generator=GENERATOR, dtype=torch.float64)
X = torch.randn(90, COLUMNS, generator=GENERATOR, dtype=torch.float64)
MATRIX = feedback(X.T @ X, 0.01).matrix


def codebook():
    entries = torch.randn(6, ROWS, generator=GENERATOR, dtype=torch.float64)
    return CodebookRule(entries.sort(0).values)


def split():
    def rand(rows):
        return torch.rand(rows, ROWS, generator=GENERATOR, dtype=torch.float64)

    return SplitRule(
        rand(COLUMNS) < 0.8,
        torch.arange(COLUMNS) // 8,
        -rand(5),
        0.5 + rand(5),
        1,
        -3 - rand(1),
        0.02 + rand(1) / 50,
        255,
    )


def points(rule):
    """All grid points of every weight, by code; infinite where there is no such code."""
    if isinstance(rule, CodebookRule):
        return rule.entries[:, None, :].expand(-1, COLUMNS, -1)
    code = torch.arange(256.0)[:, None, None]
    low = rule.low_base[rule.group] + rule.low_step[rule.group] * code
    low[2:] = torch.inf
    high = rule.high_base + rule.high_step * code
    return torch.where(rule.low, low, high)


@pytest.mark.parametrize("rule", [codebook(), split()])
def test_updated_values_round_to_the_nearest_point(rule):
    found = sweep(WEIGHT, MATRIX, rule, block_size=16)
    updated = WEIGHT + MATRIX.T @ found.error
    grid = points(rule)
    codes = (grid - updated).abs().argmin(0)
    assert torch.equal(found.codes, codes.to(torch.uint8))
    torch.testing.assert_close(WEIGHT - found.error, grid.gather(0, codes[None])[0])
