import dataclasses

import numpy as np
import oracles
import pytest
import torch
from oracles.quarot import signed_scale

from q2n.config.presets import RELEASED_NULLSPACE
from q2n.errors import InputError, NumericalError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods import METHODS
from q2n.methods.gptq import GPTQ
from q2n.methods.rtn import RTN
from q2n.wrappers.nullspace import NullSpace

ROWS, COLUMNS = 9, 48


def problem(seed=0, decay=0.5, tokens=200, dtype=torch.float64, columns=COLUMNS, **options):
    """A layer whose inputs are correlated, with scales over `decay` orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -decay, columns, dtype=torch.float64)
    noise = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64).to(dtype)
    statistics = InputStatistics(columns, RequiredStatistics.GRAM, dtype=dtype)
    statistics.update((noise * spread) @ mix)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics, **options)


def output_error(given, layer):
    error = given.weight - layer.dequantize().to(given.weight)
    return float(((error @ given.statistics.gram) * error).sum())


ORDERS = [
    {"act_order": True, "static_groups": True},
    {"act_order": False, "static_groups": True},
    {"act_order": False, "static_groups": False},
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize(("decay", "tokens"), [(0.0, 200), (3.0, 200), (1.0, 20)])
def test_gptq_is_its_definition(order, symmetric, group_size, decay, tokens):
    """Well conditioned, ill conditioned and singular. Everything in float64 here, so that
    the two ways of computing do not round one weight differently and then drift apart."""
    given = problem(decay=decay, tokens=tokens)
    options = {"bits": 3, "group_size": group_size, "symmetric": symmetric, "damping": 0.01}
    layer = GPTQ(block_size=11, **options, **order).quantize(given)
    expected, _, _ = oracles.gptq(
        given.weight.numpy(), given.statistics.gram.numpy(), **options, **order
    )
    # `dequantize` is float32: a few eps of the largest weight
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("act_order", [False, True])
def test_float32_is_as_good_as_the_definition(act_order):
    exact = problem(decay=2.0)
    single = problem(decay=2.0, dtype=torch.float32)
    method = GPTQ(bits=3, act_order=act_order)
    # codes may differ where a weight lies half-way; what they achieve may not
    assert output_error(exact, method.quantize(single)) == pytest.approx(
        output_error(exact, method.quantize(exact)), rel=0.1
    )


def test_compensated_weight_is_working_copy_at_block_borders():
    given = problem()
    method = GPTQ(bits=3, block_size=16)
    layer = method.quantize(given)
    compensated = method.compensated(given, layer.dequantize())
    assert torch.equal(layer.codes, method.quantize(given).codes)
    _, history, order = oracles.gptq(
        given.weight.numpy(),
        given.statistics.gram.numpy(),
        bits=3,
        group_size=-1,
        symmetric=False,
        act_order=True,
        static_groups=True,
        damping=0.01,
    )
    for start in range(0, COLUMNS, 16):
        columns = order[start : start + 16]
        np.testing.assert_allclose(
            compensated[:, columns], history[start][:, columns], rtol=0, atol=1e-6
        )
    first = order[:16].copy()
    assert torch.equal(compensated[:, first], given.weight[:, first])


@pytest.mark.parametrize("group_size", [-1, 16])
def test_with_endless_damping_it_is_rtn(group_size):
    given = problem()
    rtn = RTN(bits=3, group_size=group_size).quantize(given)
    for order in ORDERS:
        layer = GPTQ(bits=3, group_size=group_size, damping=1e9, **order).quantize(given)
        assert torch.equal(layer.codes, rtn.codes)
        assert torch.equal(layer.scale, rtn.scale)


@pytest.mark.parametrize("clip", ["minmax", "mse", "scale_zero"])
@pytest.mark.parametrize("group_size", [-1, 16])
def test_the_output_error_is_below_that_of_rtn(group_size, clip):
    given = problem(dtype=torch.float32)
    options = {"bits": 3, "group_size": group_size, "clip": clip}
    rtn = output_error(given, RTN(**options).quantize(given))
    for order in ORDERS:
        assert output_error(given, GPTQ(**options, **order).quantize(given)) < 0.8 * rtn


@pytest.mark.parametrize("order", ORDERS)
def test_dead_columns_are_rounded_and_disturb_no_others(order):
    given = problem(dtype=torch.float64)
    dead, live = [0, 5, 47], [i for i in range(COLUMNS) if i not in (0, 5, 47)]
    given.weight[:, dead] /= 2  # so that the others make the grid, as when they are alone
    x = torch.randn(200, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, dead] = 0
    whole = InputStatistics(COLUMNS, RequiredStatistics.GRAM, dtype=torch.float64)
    whole.update(x)
    part = InputStatistics(len(live), RequiredStatistics.GRAM, dtype=torch.float64)
    part.update(x[:, live])
    method = GPTQ(bits=3, **order)
    layer = method.quantize(dataclasses.replace(given, statistics=whole))
    alone = method.quantize(
        LayerProblem(name="part", weight=given.weight[:, live], statistics=part)
    )
    assert torch.equal(layer.codes[:, dead], RTN(bits=3).quantize(given).codes[:, dead])
    assert torch.equal(layer.dequantize()[:, live], alone.dequantize())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group_size", [-1, 16])
def test_gptq_with_dead_columns_is_its_definition(order, group_size):
    given = problem()
    gram = given.statistics.gram.clone()
    for j in (0, 5, 30, 47):
        gram[j], gram[:, j] = 0, 0
        given.weight[:, j] *= 2  # they widen the grid, which they share
    given.statistics.gram.copy_(gram)
    options = {"bits": 3, "group_size": group_size, "symmetric": False, "damping": 0.01}
    method = GPTQ(block_size=1, **options, **order)
    layer = method.quantize(given)
    compensated = method.compensated(given, layer.dequantize())
    expected, _, _ = oracles.gptq(given.weight.numpy(), gram.numpy(), **options, **order)
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=8e-6)
    assert torch.equal(compensated[:, [0, 5, 30, 47]], given.weight[:, [0, 5, 30, 47]])


@pytest.mark.parametrize("order", ORDERS)
def test_a_ragged_last_group(order):
    given = problem(columns=44)
    layer = GPTQ(bits=3, group_size=16, ragged_groups=True, **order).quantize(given)
    assert layer.scale.shape == (ROWS, 3)
    expected, _, _ = oracles.gptq(
        given.weight.numpy(),
        given.statistics.gram.numpy(),
        bits=3,
        group_size=16,
        symmetric=False,
        damping=0.01,
        **order,
    )
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=4e-6)
    with pytest.raises(InputError, match=r"h\.0\.up.*44 columns"):
        GPTQ(bits=3, group_size=16).quantize(given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_stored_in_the_problem_dtype(dtype):
    given = problem(dtype=torch.float32, scale_dtype=dtype)
    rtn = output_error(given, RTN(bits=3).quantize(given))
    for order in ORDERS:
        layer = GPTQ(bits=3, **order).quantize(given)
        assert layer.scale.dtype == dtype
        assert output_error(given, layer) < 0.8 * rtn


def test_linears_of_a_site_share_the_factor(monkeypatch):
    given = problem(dtype=torch.float32)
    real, calls = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    for bits in (2, 3):
        GPTQ(bits=bits).quantize(given)
    assert len(calls) == 1
    GPTQ(act_order=False).quantize(given)
    assert len(calls) == 2


def test_bad_statistics_name_the_layer():
    given = problem(dtype=torch.float32)
    given.statistics.update(torch.full((1, COLUMNS), float("nan")))
    with pytest.raises(NumericalError, match=r"h\.0\.up.*not finite"):
        GPTQ().quantize(given)
    repaired = problem(tokens=4, dtype=torch.float32)
    assert GPTQ(damping=0.0).quantize(repaired).record["damping"] > 0


SIGNED = {"grid": "signed", "symmetric": True, "clip": "mse"}
"""QuaRot's grid."""


def test_signed_codes_have_a_searched_range():
    given = problem(dtype=torch.float32)
    for bits in (2, 4):
        layer = RTN(bits=bits, **SIGNED).quantize(given)
        scale = np.array([signed_scale(row.double().numpy(), bits) for row in given.weight])
        low = -(2 ** (bits - 1))
        codes = np.clip(np.round(given.weight.numpy() / scale[:, None]), low, -low - 1)
        # one rounding of scale times code to float32
        np.testing.assert_allclose(layer.dequantize(), scale[:, None] * codes, rtol=1e-6)
        assert layer.bits_per_weight == bits + 32 / COLUMNS  # no zero point is stored


def test_gptq_makes_up_for_rounding_on_signed_codes():
    given = problem(dtype=torch.float32)
    method = GPTQ(bits=3, act_order=False, **SIGNED)
    rtn, gptq = RTN(bits=3, **SIGNED).quantize(given), method.quantize(given)
    assert torch.equal(rtn.scale, gptq.scale) and torch.equal(rtn.zero, gptq.zero)
    assert output_error(given, gptq) < 0.7 * output_error(given, rtn)
    released = {**RELEASED_NULLSPACE["gptq"], "gram": "second_moment"}
    stepped = NullSpace(inner=method, **released).quantize(given)
    assert torch.equal(stepped.codes, gptq.codes)
    assert not torch.equal(stepped.scale, gptq.scale)


@pytest.mark.parametrize("options", [{}, {"group_size": 16}, {"act_order": False}])
def test_coordinate_descent_lowers_the_loss_to_a_fixed_point(options):
    """No other level of any single weight is better: the definition of where it ends."""
    given = problem(dtype=torch.float32)
    swept, descended = (
        GPTQ(bits=2, damping=1e-6, descent_passes=passes, **options).quantize(given)
        for passes in (0, 50)
    )
    least = output_error(given, descended)
    assert least < 0.9 * output_error(given, swept)
    assert torch.equal(swept.scale, descended.scale)
    for row in range(ROWS):
        for move in (-1, 1):
            for column in range(0, COLUMNS, 5):
                codes = descended.codes.clone().int()
                codes[row, column] += move
                other = dataclasses.replace(descended, codes=codes.clamp(0, 3).to(torch.uint8))
                assert output_error(given, other) >= least * (1 - 1e-4)


def test_options_that_cannot_be():
    for options, match in (
        ({"act_order": True, "static_groups": False, "group_size": 16}, "--static-groups or"),
        ({"damping": -1.0}, "damping is -1.0; .* at least 0"),
        ({"damping": float("inf")}, "damping is inf"),
        ({"block_size": 0}, "block_size is 0; .* at least 1"),
        ({"bits": 7}, "bits is 7; it takes one of 2, 3, 4, 5, 6, 8"),
        ({"grid": "signed"}, "with --grid signed use --symmetric"),
        ({"grid": "signed", "symmetric": True, "clip": "scale_zero"}, "use --clip mse"),
    ):
        with pytest.raises(InputError, match=match):
            GPTQ(**options)
    assert METHODS["gptq"] is GPTQ
    assert GPTQ().required_statistics == RequiredStatistics.GRAM
