import dataclasses

import numpy as np
import oracles
import pytest
import torch
from oracles import codebook as oracle

from q2n.errors import InputError
from q2n.layers.uniform import UniformLinear
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods import METHODS
from q2n.methods.gptq import GPTQ
from q2n.methods.leanquant import LeanQuant
from q2n.wrappers.nullspace import NullSpace

ROWS, COLUMNS = 9, 48
DEAD = torch.tensor([0, 30])


def problem(decay=1.0, dtype=torch.float64, dead=(), **options):
    """A layer whose inputs are correlated, with scales over `decay` orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -decay, COLUMNS, dtype=torch.float64)
    x = (torch.randn(200, COLUMNS, generator=generator, dtype=torch.float64) * spread) @ mix
    x[:, list(dead)] = 0
    statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM, dtype=dtype)
    statistics.update(x)
    weight = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics, **options)


def output_error(given, layer):
    error = given.weight - layer.dequantize().to(given.weight)
    return float(((error @ given.statistics.gram) * error).sum())


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("exponent", [0.0, 4.0])
@pytest.mark.parametrize("bits", [2, 3])
def test_leanquant_is_its_definition(bits, exponent, act_order):
    """In float64, so that the two ways of computing do not round one weight differently."""
    given = problem()
    options = {"bits": bits, "exponent": exponent, "act_order": act_order}
    given = dataclasses.replace(given, scale_dtype=torch.float64)
    layer = LeanQuant(**options, damping=0.1, block_size=11).quantize(given)
    expected, books = oracle.leanquant(
        given.weight.numpy(), given.statistics.gram.numpy(), **options, damping=0.1
    )
    np.testing.assert_allclose(layer.codebook, books, rtol=0, atol=1e-8)
    # `dequantize` is float32: a few eps of the largest weight
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=1e-6)


def test_the_error_is_below_that_of_gptq():
    given = problem(dtype=torch.float32)
    for bits in (2, 3):
        gptq = output_error(given, GPTQ(bits=bits, damping=0.1).quantize(given))
        assert output_error(given, LeanQuant(bits=bits).quantize(given)) < 0.9 * gptq
        uniform = LeanQuant(bits=bits, levels="uniform").quantize(given)
        assert output_error(given, uniform) < gptq
        groups = LeanQuant(bits=bits, levels="uniform", group_size=16).quantize(given)
        assert isinstance(groups, UniformLinear)
        assert groups.scale.shape == (ROWS, 3)
        assert output_error(given, groups) < output_error(given, uniform)


def test_codebook_with_room_for_all_weights_is_exact():
    given = problem(dtype=torch.float32)
    layer = LeanQuant(bits=8).quantize(given)
    assert torch.equal(layer.dequantize(), given.weight)
    assert layer.bits_per_weight == 8 + 256 * 32 / COLUMNS


def test_the_codebook_is_rounded_before_the_sweep():
    coarse = torch.float8_e5m2  # 2 bits of mantissa, to make it matter
    given = problem(dtype=torch.float32, scale_dtype=coarse)
    layer = LeanQuant(bits=3).quantize(given)
    assert layer.codebook.dtype == coarse
    exact = LeanQuant(bits=3).quantize(problem(dtype=torch.float32))
    late = dataclasses.replace(exact, codebook=exact.codebook.to(coarse))
    assert output_error(given, layer) < 0.8 * output_error(given, late)


@pytest.mark.parametrize("levels", ["codebook", "uniform"])
def test_dead_columns_take_little_of_the_grid_from_the_others(levels):
    given = problem(decay=3.0, dtype=torch.float32, dead=[0, 30])
    method = LeanQuant(bits=3, levels=levels, damping=0.01)
    error = output_error(given, method.quantize(given))
    without = dataclasses.replace(given, weight=given.weight.index_fill(1, DEAD, 0.0))
    assert error < 1.15 * output_error(without, method.quantize(without))


@pytest.mark.parametrize("levels", ["codebook", "uniform"])
def test_the_grid_reaches_the_weights_of_dead_columns(levels):
    given = problem(dtype=torch.float32, dead=[0, 30])
    given.weight[:, DEAD] = 6.0
    dense = LeanQuant(bits=3, levels=levels).quantize(given).dequantize()
    assert (dense[:, DEAD] - 6).abs().mean() < 1.5


@pytest.mark.parametrize("method", [LeanQuant(bits=2), LeanQuant(bits=2, levels="uniform")])
def test_it_takes_the_papers_alpha(method):
    given = problem(decay=2.0, dtype=torch.float32)
    before, after = method.quantize(given), NullSpace(inner=method).quantize(given)
    quantized = before.dequantize().double()
    expected = oracles.projected_alpha(
        given.weight.double(),
        quantized,
        given.statistics.gram.double(),
        after.record["kept_rank"],
        0.2,
    )
    assert (expected - 1).abs().max() > 0.01
    # float32 eigenvectors: a few eps over the gap at the cut
    torch.testing.assert_close(
        after.dequantize().double(), expected[:, None] * quantized, rtol=0, atol=1e-4
    )


def test_options_that_cannot_be():
    for options, match in (
        ({"group_size": 16}, "group_size 16 is for the uniform grid"),
        (
            {"levels": "uniform", "group_size": 0},
            "group_size is 0; .* at least 1 and at most 1000000, or -1",
        ),
        ({"exponent": -1.0}, "exponent is -1.0; .* at least 0"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"bits": 5}, "bits is 5; it takes one of 2, 3, 4, 8"),
    ):
        with pytest.raises(InputError, match=match):
            LeanQuant(**options)
    with pytest.raises(InputError, match=r"h\.0\.up.*48 columns"):
        LeanQuant(levels="uniform", group_size=32).check("h.0.up", (ROWS, COLUMNS))
    assert METHODS["leanquant"] is LeanQuant
