"""Ranges tried row by row: against column-by-column GPTQ with each of them."""

import numpy as np
import oracles
import pytest
import torch

from q2n.errors import InputError
from q2n.grids.granularity import granularity_of
from q2n.grids.scale_zero_search import GROUP_STEPS, ROW_STEPS, ScaleZeroGrid
from q2n.linalg.factor import feedback
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods.gptq import GPTQ
from q2n.methods.range_trials import FACTORS

ROWS, COLUMNS, DAMPING = 24, 48, 0.01


def problem(seed=0, decay=1.0, dtype=torch.float64, columns=COLUMNS):
    """A layer whose inputs are the more nearly collinear, the larger `decay`."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -decay, columns, dtype=torch.float64)
    noise = torch.randn(200, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64).to(dtype)
    statistics = InputStatistics(columns, RequiredStatistics.GRAM, dtype=dtype)
    statistics.update((noise * spread) @ mix)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics)


def costs(given, dense):
    """e H e^T of each row, from the damped Gram matrix."""
    gram = given.statistics.gram.double().numpy()
    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    error = given.weight.double().numpy() - dense
    return ((error @ damped) * error).sum(1)


def by_hand(given, clip, bits, group_size, symmetric):
    """Each row's best among column-by-column runs with each range."""
    size = COLUMNS if group_size == -1 else group_size
    weight = given.weight.numpy()
    groups = range(COLUMNS // size)
    widest = {
        g: oracles.minmax(weight[:, g * size : (g + 1) * size], bits, symmetric) for g in groups
    }
    fitted, tried = widest, []
    if clip == "scale_zero":
        steps = ROW_STEPS if group_size == -1 else GROUP_STEPS
        grid = ScaleZeroGrid(
            bits=bits, symmetric=symmetric, granularity=granularity_of(group_size), steps=steps
        )
        scale, zero = (x.double().numpy() for x in grid.fit(given.weight, torch.float32, "w"))
        fitted = {g: (scale[:, g], zero[:, g]) for g in groups}
        tried = [widest]
    scaled = [
        {g: (np.float32(s * factor).astype(np.float64), z) for g, (s, z) in fitted.items()}
        for factor in FACTORS
    ]
    results = [
        oracles.gptq(
            weight,
            given.statistics.gram.numpy(),
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            act_order=True,
            static_groups=True,
            damping=DAMPING,
            parameters=parameters,
        )[0]
        for parameters in [fitted, *tried, *scaled]
    ]
    cost = np.stack([costs(given, dense) for dense in results])
    best = cost.argmin(0)
    return np.stack([results[best[row]][row] for row in range(ROWS)]), best, len(results)


@pytest.mark.parametrize("clip", ["minmax", "scale_zero"])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("decay", [0.5, 3.0])
def test_each_row_has_its_best_range(clip, group_size, symmetric, decay):
    given = problem(decay=decay)
    options = {"bits": 2, "group_size": group_size, "symmetric": symmetric}
    layer = GPTQ(**options, clip=clip, range_trials=True).quantize(given)
    expected, best, count = by_hand(given, clip, **options)
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=4e-6)
    shares = np.bincount(best, minlength=count) / ROWS
    np.testing.assert_allclose(layer.record["range_shares"], shares, atol=1e-4)
    assert (shares > 0).sum() > 1  # the choice differs between rows


@pytest.mark.parametrize("options", [{"grid": "q4_0", "bits": 4}, {"grid": "q4_k", "bits": 4}])
def test_blocks_are_never_worse_in_any_row(options):
    given = problem(columns=256, dtype=torch.float32, decay=2.0)
    plain, tried = (
        costs(given, GPTQ(**options, range_trials=on).quantize(given).dequantize().numpy())
        for on in (False, True)
    )
    assert (tried <= plain * 1.001).all()
    assert tried.sum() < 0.995 * plain.sum()


def test_descent_follows_within_each_range():
    given = problem()
    options = {"bits": 2, "descent_passes": 3}
    plain, tried = (
        costs(given, GPTQ(**options, range_trials=on).quantize(given).dequantize().numpy())
        for on in (False, True)
    )
    assert (tried <= plain * (1 + 1e-6)).all()
    assert tried.sum() < 0.9 * plain.sum()


def test_cost_is_the_quadratic_form():
    given = problem(decay=2.0)
    back = feedback(given.statistics.gram, DAMPING, descending=True)
    error = torch.randn(ROWS, COLUMNS, dtype=torch.float64, generator=torch.Generator())
    found = back.cost(error[:, back.order].T.contiguous())
    np.testing.assert_allclose(found, costs(given, (given.weight - error).numpy()), rtol=1e-9)


def test_groups_fitted_on_the_way_are_refused():
    with pytest.raises(InputError, match="range_trials fits all groups before"):
        GPTQ(group_size=16, act_order=False, static_groups=False, range_trials=True)
