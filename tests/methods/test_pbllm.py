import numpy as np
import oracles
import pytest
import torch
from oracles import partly_binary as oracle

from q2n.errors import InputError
from q2n.linalg.required_statistics import RequiredStatistics
from q2n.linalg.statistics import InputStatistics
from q2n.method import LayerProblem
from q2n.methods import METHODS
from q2n.methods.pbllm import PBLLM
from q2n.wrappers.nullspace import NullSpace

ROWS, COLUMNS = 9, 48


def problem(dtype=torch.float64, dead=(), mixed=True, **options):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -1, COLUMNS, dtype=torch.float64)
    x = torch.randn(200, COLUMNS, generator=generator, dtype=torch.float64) * spread
    x = x @ mix if mixed else x
    x[:, list(dead)] = 0
    statistics = InputStatistics(COLUMNS, RequiredStatistics.GRAM, dtype=dtype)
    statistics.update(x)
    weight = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64).to(dtype)
    return LayerProblem(name="h.0.up", weight=weight, statistics=statistics, **options)


def output_error(given, layer):
    error = given.weight - layer.dequantize().to(given.weight)
    return float(((error @ given.statistics.gram) * error).sum())


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("saliency", ["hessian", "magnitude"])
@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("low", ["xnor", "sign", "2bit", "4bit", "prune"])
def test_pbllm_is_its_definition(low, group_size, saliency, feedback):
    """In float64, so that the two ways of computing do not round one weight differently."""
    given = problem()
    layer = PBLLM(
        low=low,
        low_fraction=0.8,
        saliency=saliency,
        group_size=group_size,
        feedback=feedback,
        block_size=11,
    ).quantize(given)
    mask, expected = oracle.pbllm(
        given.weight.numpy(),
        given.statistics.gram.numpy(),
        kind=low,
        fraction=0.8,
        saliency=saliency,
        size=COLUMNS if group_size == -1 else group_size,
        damping=0.01,
        feedback=feedback,
    )
    assert np.array_equal(layer.low, mask)
    # means and magnitudes are stored in float32, and the sweep makes up for their rounding
    np.testing.assert_allclose(layer.dequantize(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group_size", [-1, 16])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.9, 0.999])
def test_one_more_than_the_fraction_is_low(fraction, group_size):
    layer = PBLLM(low_fraction=fraction, group_size=group_size).quantize(problem())
    size = COLUMNS if group_size == -1 else group_size
    for a in range(0, COLUMNS, size):
        assert int(layer.low[:, a : a + size].sum()) == int(fraction * ROWS * size) + 1


def test_what_is_stored_is_counted_once():
    layer = PBLLM(low_fraction=0.9).quantize(problem(scale_dtype=torch.float16))
    lows = int(0.9 * ROWS * COLUMNS) + 1
    assert (len(layer.low_codes), len(layer.high_codes)) == (lows, ROWS * COLUMNS - lows)
    codes = lows + 8 * (ROWS * COLUMNS - lows)
    assert layer.stored_bits == ROWS * COLUMNS + codes + ROWS * (3 * 16 + 8)


def test_more_high_weights_and_hessian_saliency_reduce_error():
    given = problem(dtype=torch.float32)
    shares = [output_error(given, PBLLM(low_fraction=f).quantize(given)) for f in (0.9, 0.7, 0.3)]
    assert shares[0] > shares[1] > shares[2]
    kinds = [
        output_error(given, PBLLM(low=low).quantize(given)) for low in ("prune", "xnor", "4bit")
    ]
    assert kinds[0] > kinds[1] > kinds[2]
    assert output_error(given, PBLLM(feedback=False).quantize(given)) > shares[0]
    given = problem(dtype=torch.float32, mixed=False)  # columns of very unequal energy
    kinds = [
        output_error(given, PBLLM(saliency=by).quantize(given)) for by in ("magnitude", "hessian")
    ]
    assert kinds[0] > kinds[1]


def test_dead_columns_and_rows_of_zeros():
    given = problem(dtype=torch.float32, dead=[0, 30])
    given.weight[3] = 0
    for low in ("xnor", "sign", "2bit", "prune"):
        layer = PBLLM(low=low).quantize(given)
        assert torch.isfinite(layer.dequantize()).all()
        assert layer.dequantize()[3].abs().max() == 0


def test_text_is_read_only_where_it_is_needed():
    assert PBLLM().required_statistics == RequiredStatistics.GRAM
    assert PBLLM(feedback=False).required_statistics == RequiredStatistics.GRAM
    method = PBLLM(feedback=False, saliency="magnitude")
    assert method.required_statistics == RequiredStatistics.NONE
    given = problem(dtype=torch.float32)
    without = LayerProblem(name="h.0.up", weight=given.weight, statistics=None)
    assert torch.equal(method.quantize(without).dequantize(), method.quantize(given).dequantize())


def test_it_takes_the_papers_alpha():
    given, method = problem(dtype=torch.float32), PBLLM(group_size=16)
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
    assert torch.equal(before.low_codes, after.low_codes)


def test_options_that_cannot_be():
    for options, match in (
        ({"low_fraction": 0.0}, "low_fraction is 0.0; .* above 0 and below 1"),
        ({"low_fraction": 1.0}, "low_fraction is 1.0; .* above 0 and below 1"),
        ({"low_fraction": float("nan")}, "low_fraction is nan"),
        ({"high_bits": 7}, "high_bits is 7; it takes one of 2, 3, 4, 8"),
        ({"group_size": 0}, "group_size is 0"),
        ({"damping": float("inf")}, "damping is inf"),
        ({"block_size": 0}, "block_size is 0"),
    ):
        with pytest.raises(InputError, match=match):
            PBLLM(**options)
    with pytest.raises(InputError, match=r"h\.0\.up.*48 columns"):
        PBLLM(group_size=32).check("h.0.up", (ROWS, COLUMNS))
    assert METHODS["pbllm"] is PBLLM


@pytest.mark.parametrize("low", ["xnor", "sign", "2bit", "4bit", "prune"])
def test_a_group_of_zeros_stays_zero(low):
    given = problem(torch.float32, scale_dtype=torch.bfloat16)
    given.weight[:, 16:32] = 0
    layer = PBLLM(low=low, group_size=16, feedback=False).quantize(given)
    assert (layer.dequantize()[:, 16:32] == 0).all()
