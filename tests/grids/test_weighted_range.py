import numpy as np
import oracles
import pytest
import torch

from q2n.errors import InputError
from q2n.grids import weighted_range as room
from q2n.grids.granularity import PerGroup
from q2n.grids.uniform import UniformGrid

ROWS, COLUMNS, SIZE = 12, 64, 32


def given(seed=0):
    """Rows that reach further up than down, and weights over three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    weight = torch.where(weight > 1.5, 3 * weight, weight)
    importance = 10 ** (3 * torch.rand(COLUMNS, generator=generator))
    return weight, importance


def costs(weight, importance, scale, zero, bits):
    """Weighted error of each row and group."""
    found = np.zeros((ROWS, COLUMNS // SIZE))
    for i in range(ROWS):
        for g in range(COLUMNS // SIZE):
            part = slice(g * SIZE, (g + 1) * SIZE)
            row = weight[i, part].double().numpy()
            rounded = oracles.rtn(row, float(scale[i, g]), float(zero[i, g]), bits)
            found[i, g] = (importance[part].double().numpy() * (row - rounded) ** 2).sum()
    return found


@pytest.mark.parametrize("bits", [2, 3])
def test_it_comes_near_the_best_of_all_ranges(bits):
    weight, importance = given()
    grid = UniformGrid(bits=bits, granularity=PerGroup(SIZE))
    found = costs(
        weight, importance, *room.fit_weighted(grid, weight, importance, torch.float32, "l"), bits
    )
    plain = costs(weight, importance, *grid.fit(weight, torch.float32, "l"), bits)
    assert (found <= plain * (1 + 1e-5)).all()
    groups = weight.unflatten(1, (-1, SIZE))
    lo, hi = groups.amin(-1), groups.amax(-1)
    best = np.full_like(found, np.inf)
    for low in np.linspace(0.15, 1, 35):
        for high in np.linspace(0.15, 1, 35):
            tried = grid.parameters(low * lo, high * hi, torch.float32, "l")
            best = np.minimum(best, costs(weight, importance, *tried, bits))
    assert np.median(found / best) < 1.05
    assert found.sum() < 0.75 * plain.sum()


def test_outlier_of_zero_importance_does_not_widen_grid():
    weight, importance = given()
    weight[:, 0], importance[0] = 3.0 * weight.abs().amax(1), 0.0
    grid = UniformGrid(bits=3)
    scale, _ = room.fit_weighted(grid, weight, importance, torch.float32, "l")
    assert scale.sum() < 0.5 * grid.fit(weight, torch.float32, "l")[0].sum()


def test_portions_change_nothing(monkeypatch):
    weight, importance = given()
    grid = UniformGrid(bits=3, granularity=PerGroup(SIZE))
    whole = room.fit_weighted(grid, weight, importance, torch.float16, "l")
    monkeypatch.setattr(room, "_ENTRIES_AT_ONCE", 200)
    parts = room.fit_weighted(grid, weight, importance, torch.float16, "l")
    assert whole[0].dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_groups_that_do_not_divide_name_the_layer():
    weight, importance = given()
    grid = UniformGrid(bits=3, granularity=PerGroup(48))
    with pytest.raises(InputError, match="h.0.up.*64 columns"):
        room.fit_weighted(grid, weight, importance, torch.float32, "h.0.up")
