import dataclasses

import oracles
import pytest
import torch
from two_streams import COLUMNS, ROWS, SAME, factors, gathered, loss, on_tokens, problem

from q2n.errors import InputError, NumericalError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.correction import InputErrorCorrection
from q2n.wrappers.nullspace import NullSpace
from q2n.wrappers.output_scales import OutputScales

INNER = [RTN(bits=3), RTN(bits=3, group_size=8), GPTQ(bits=3), GPTQ(bits=2, group_size=8)]
NAMES = ["rtn", "rtn-groups", "gptq", "gptq-groups"]


@pytest.mark.parametrize("target", ["own", "full_precision"])
@pytest.mark.parametrize("per", ["row", "group"])
@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_any_method_gets_factors_and_keeps_its_codes(inner, per, target):
    given, x, x_full = problem()
    before = inner.quantize(given)
    after = OutputScales(inner=inner, target=target, scales_per=per).quantize(given)
    assert torch.equal(after.codes, before.codes) and torch.equal(after.zero, before.zero)
    size = before.group_size if per == "group" else COLUMNS
    goal = x if target == "own" else x_full
    expected = oracles.least_squares_output_alpha(*on_tokens(given, before, x, goal), size, 0.5)
    torch.testing.assert_close(factors(after, before), expected.expand(before.scale.shape), **SAME)
    assert (expected - 1).abs().max() > 0.005
    record = after.record
    assert record["scales_ridge"] == 0.5
    assert record["scales_mean"] == pytest.approx(float(expected.mean()), abs=3e-5)
    assert record["scales_min"] == pytest.approx(float(expected.min()), abs=3e-5)
    assert record["scales_max"] == pytest.approx(float(expected.max()), abs=3e-5)
    assert record["scales_std"] == pytest.approx(float(expected.std(correction=0)), abs=3e-5)
    assert dict(before.record).items() <= dict(record).items()


@pytest.mark.parametrize("threshold", [0.05, 0.4])
@pytest.mark.parametrize("directions", ["principal", "spectral"])
@pytest.mark.parametrize("per", ["row", "group"])
@pytest.mark.parametrize("target", ["own", "full_precision"])
def test_directions_weigh_the_residual(target, per, directions, threshold):
    given, x, x_full = problem()
    inner = GPTQ(bits=2, group_size=8)
    before = inner.quantize(given)
    options = {"target": target, "scales_per": per, "scales_threshold": threshold}
    after = OutputScales(inner=inner, scales_directions=directions, **options).quantize(given)
    expected = oracles.filtered_output_alpha(
        *on_tokens(given, before, x, x if target == "own" else x_full),
        8 if per == "group" else COLUMNS,
        0.5,
        directions,
        threshold,
    )
    # eigenvectors of float32 moments at the cut
    torch.testing.assert_close(
        factors(after, before), expected.expand(before.scale.shape), rtol=0, atol=1e-4
    )
    everywhere = OutputScales(inner=inner, **options).quantize(given)
    assert (factors(after, everywhere) - 1).abs().max() > 2e-3
    assert torch.equal(after.codes, before.codes)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("target", ["own", "full_precision"])
@pytest.mark.parametrize("inner", INNER, ids=NAMES)
def test_every_row_comes_closer_to_its_target(inner, target, ridge):
    given, x, x_full = problem()
    goal = x if target == "own" else x_full
    options = {"inner": inner, "target": target, "scales_ridge": ridge}
    before = loss(given, inner.quantize(given), x, goal)
    rows = loss(given, OutputScales(scales_per="row", **options).quantize(given), x, goal)
    groups = loss(given, OutputScales(scales_per="group", **options).quantize(given), x, goal)
    assert (rows < before).all() and (groups < before).all()
    if ridge == 0:  # more factors, a smaller minimum
        assert (groups <= rows * (1 + 1e-5)).all()


def test_large_ridge_leaves_the_layer_unchanged():
    given, _, _ = problem()
    for per in ("row", "group"):
        inner = GPTQ(bits=3, group_size=8)
        after = OutputScales(inner=inner, scales_per=per, scales_ridge=1e9).quantize(given)
        torch.testing.assert_close(after.scale, inner.quantize(given).scale, rtol=3e-7, atol=0)


def test_both_targets_are_equal_behind_an_exact_prefix():
    given, x, _ = problem()
    given = dataclasses.replace(given, statistics=gathered(x, x))
    for per in ("row", "group"):
        full_precision, own = (
            OutputScales(inner=RTN(bits=3, group_size=8), target=target, scales_per=per)
            for target in ("full_precision", "own")
        )
        torch.testing.assert_close(
            full_precision.quantize(given).scale, own.quantize(given).scale, rtol=1e-5, atol=0
        )


def test_a_shorter_last_group_has_its_factor():
    given, x, x_full = problem()
    inner = RTN(bits=3, group_size=12, ragged_groups=True)
    before = inner.quantize(given)
    expected = oracles.least_squares_output_alpha(*on_tokens(given, before, x, x_full), 12, 0.5)
    assert before.scale.shape == expected.shape == (ROWS, 3)
    after = OutputScales(inner=inner).quantize(given)
    torch.testing.assert_close(factors(after, before), expected, **SAME)


def test_zero_rows_and_dead_inputs_keep_their_scales():
    given, x, x_full = problem()
    given.weight[3] = 0
    given.weight[5, 8:16] = 0
    x[:, 16:24] = 0
    given = dataclasses.replace(given, statistics=gathered(x, x_full))
    inner = RTN(bits=3, group_size=8)
    for ridge in (0.0, 0.5):
        before = inner.quantize(given)
        after = OutputScales(inner=inner, scales_ridge=ridge).quantize(given)
        found = factors(after, before)
        assert (found[3] == 1).all() and found[5, 1] == 1 and (found[:, 2] == 1).all()
        expected = oracles.least_squares_output_alpha(
            *on_tokens(given, before, x, x_full), 8, ridge
        )
        torch.testing.assert_close(found, expected, **SAME)


@pytest.mark.parametrize("directions", ["all", "spectral"])
def test_it_does_not_matter_how_tokens_were_merged(directions):
    given, x, x_full = problem()
    a, b = gathered(x[:100], x_full[:100]), gathered(x[100:], x_full[100:])
    method = OutputScales(inner=RTN(bits=3, group_size=8), scales_directions=directions)
    expected = method.quantize(given).scale
    for statistics in (a + b, b + a):
        scale = method.quantize(dataclasses.replace(given, statistics=statistics)).scale
        torch.testing.assert_close(scale, expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_rounded_once_to_their_dtype(dtype):
    given, x, x_full = problem(scale_dtype=dtype)
    inner = GPTQ(bits=3, group_size=8)
    before, after = inner.quantize(given), OutputScales(inner=inner).quantize(given)
    alpha = oracles.least_squares_output_alpha(*on_tokens(given, before, x, x_full), 8, 0.5)
    assert after.scale.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        after.scale.double(), before.scale.double() * alpha, rtol=0.51 * eps + 3e-5, atol=0
    )


def test_the_linears_of_a_site_share_one_filter(monkeypatch):
    given, _, _ = problem()
    real, calls = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: calls.append(1) or real(m))
    OutputScales(inner=RTN(bits=3)).quantize(given)
    assert not calls
    found = [
        OutputScales(inner=RTN(bits=3), **options).quantize(given).scale
        for options in (
            {"scales_directions": "principal"},
            {"scales_directions": "principal", "scales_threshold": 0.5},
            {"scales_directions": "spectral"},
            {"scales_directions": "spectral", "scales_threshold": 0.5},
        )
    ]
    NullSpace(inner=RTN(bits=3)).quantize(given)
    assert len(calls) == 1
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_statistics_it_reads():
    gptq, rtn = GPTQ(bits=3), RTN(bits=3)
    assert (
        OutputScales(inner=rtn).required_statistics
        == RequiredStatistics.GRAM | RequiredStatistics.CROSS
    )
    assert OutputScales(inner=rtn, target="own").required_statistics == RequiredStatistics.GRAM
    assert OutputScales(inner=gptq, target="own").required_statistics == RequiredStatistics.GRAM
    assert OutputScales(
        inner=InputErrorCorrection(inner=rtn), target="own"
    ).required_statistics == (RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    given, x, _ = problem()
    alone = InputStatistics(COLUMNS, RequiredStatistics.GRAM)
    alone.update(x)
    alone = dataclasses.replace(given, statistics=alone)
    method = OutputScales(inner=gptq, target="own")
    assert torch.equal(method.quantize(alone).scale, method.quantize(given).scale)
    with pytest.raises(InputError, match="CROSS"):
        OutputScales(inner=gptq).quantize(alone)


def test_refusals():
    for options in (
        {"scales_ridge": -0.1},
        {"scales_ridge": float("nan")},
        {"scales_ridge": float("inf")},
        {"scales_threshold": 0.0},
        {"scales_threshold": -1.0},
        {"scales_threshold": float("nan")},
    ):
        with pytest.raises(
            InputError, match=f"^{next(iter(options))} is .*; it takes a finite number"
        ):
            OutputScales(inner=RTN(), **options)
    OutputScales(inner=RTN(), scales_ridge=0.0)
    with pytest.raises(InputError, match=r"h\.0\.up.*44 columns"):
        OutputScales(inner=RTN(group_size=16)).check("h.0.up", (ROWS, 44))
    given, x, x_full = problem()
    given.statistics.update(x, float("inf") * x_full)
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*cross moment.*not finite"):
        OutputScales(inner=RTN()).quantize(given)
    unseen = InputStatistics(COLUMNS, RequiredStatistics.GRAM | RequiredStatistics.CROSS)
    with pytest.raises(NumericalError, match=r"h\.0\.up_proj.*no calibration token"):
        OutputScales(inner=RTN()).quantize(dataclasses.replace(given, statistics=unseen))
