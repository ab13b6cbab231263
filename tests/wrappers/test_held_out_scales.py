"""Ridge and threshold of the output scales that are chosen on held-out windows."""

import dataclasses

import oracles
import pytest
import torch
from two_streams import COLUMNS, loss, on_tokens, problem

from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.methods.rtn import RTN
from q2n.wrappers.output_scales import THRESHOLDS, OutputScales

HELD_OUT_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HALVES = (slice(0, None, 2), slice(1, None, 2))


@pytest.mark.parametrize("per", ["row", "group"])
@pytest.mark.parametrize("target", ["own", "full_precision"])
@pytest.mark.parametrize("tokens", [16, 48, 240])
def test_held_out_ridge_is_best_on_unseen_windows(tokens, target, per):
    given, x, x_full = problem()
    x, x_full = (t[:tokens].unflatten(0, (4, -1)) for t in (x, x_full))
    statistics = InputStatistics(
        COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    )
    statistics.update(x, x_full)
    given = dataclasses.replace(given, statistics=statistics)
    inner = RTN(bits=3, group_size=8)
    before = inner.quantize(given)
    goal = x if target == "own" else x_full
    size = 8 if per == "group" else COLUMNS
    errors = []
    for ridge in HELD_OUT_RIDGES:
        error = 0.0
        for fitted, unseen in (HALVES, HALVES[::-1]):
            fold = (t[fitted].flatten(0, 1) for t in (x, goal))
            alpha = oracles.least_squares_output_alpha(
                *on_tokens(given, before, *fold), size, ridge
            )
            scaled = dataclasses.replace(before, scale=(before.scale * alpha).float())
            rest = (t[unseen].flatten(0, 1) for t in (x, goal))
            error += float(loss(given, scaled, *rest).sum())
        errors.append(error)
    best = HELD_OUT_RIDGES[errors.index(min(errors))]
    options = {"inner": inner, "target": target, "scales_per": per}
    method = OutputScales(scales_held_out=True, **options)
    assert RequiredStatistics.FOLDS in method.required_statistics
    layer = method.quantize(given)
    assert layer.record["scales_ridge"] == best
    assert torch.equal(
        layer.scale, OutputScales(scales_ridge=best, **options).quantize(given).scale
    )


@pytest.mark.parametrize("directions", ["principal", "spectral"])
def test_held_out_threshold_is_best_on_unseen_windows(directions):
    """The fit sees filtered inputs, the error all of them."""
    given, x, x_full = problem(noise=1.0)
    x, x_full = (t[:48].unflatten(0, (4, -1)) for t in (x, x_full))
    statistics = InputStatistics(
        COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS | RequiredStatistics.FOLDS
    )
    statistics.update(x, x_full)
    given = dataclasses.replace(given, statistics=statistics)
    inner = RTN(bits=2, group_size=8)
    before = inner.quantize(given)
    errors = {}
    for threshold in THRESHOLDS:
        for ridge in HELD_OUT_RIDGES:
            error = 0.0
            for fitted, unseen in (HALVES, HALVES[::-1]):
                a, b = (t[fitted].flatten(0, 1) for t in (x, x_full))
                alpha = oracles.filtered_output_alpha(
                    *on_tokens(given, before, a, b),
                    8,
                    ridge,
                    directions,
                    threshold,
                    x.flatten(0, 1),
                )
                scaled = dataclasses.replace(before, scale=(before.scale * alpha).float())
                rest = (t[unseen].flatten(0, 1) for t in (x, x_full))
                error += float(loss(given, scaled, *rest).sum())
            errors[error] = threshold, ridge
    options = {"inner": inner, "scales_directions": directions}
    record = OutputScales(scales_held_out=True, **options).quantize(given).record
    assert (record["scales_threshold"], record["scales_ridge"]) == errors[min(errors)]
    assert len({errors[e] for e in errors}) == len(THRESHOLDS) * len(HELD_OUT_RIDGES)
