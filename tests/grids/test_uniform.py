import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.errors import InputError, NumericalError
from q2n.grids.granularity import PerChannel, PerGroup
from q2n.grids.scale_zero_search import ScaleZeroGrid
from q2n.grids.uniform import UniformGrid
from q2n.layers.uniform import UniformLinear
from q2n.method import LayerProblem
from q2n.methods.rtn import RTN


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(grid, weight, dtype=torch.float32, size=None):
    size = size or weight.shape[1]
    scale, zero = grid.fit(weight, dtype, "layer")
    group = torch.arange(weight.shape[1]) // size
    codes = grid.encode(weight, scale[:, group], zero[:, group])
    return UniformLinear(
        codes=codes,
        scale=scale,
        zero=zero,
        bits=grid.bits,
        group_size=size,
        symmetric=grid.symmetric,
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1, 1))
def test_minmax_is_the_definition(bits, symmetric, seed, shift):
    # float64: a symmetric grid puts the largest weight half-way between two points, and
    # float32 may round it the other way than the oracle
    weight = normal(5, 12, seed=seed).double() + 2 * shift
    grid = UniformGrid(bits=bits, symmetric=symmetric)
    scale, zero = grid.fit(weight, torch.float32, "layer")
    expected_scale, expected_zero = oracles.minmax(weight.numpy(), bits, symmetric)
    np.testing.assert_array_equal(scale[:, 0], expected_scale)
    np.testing.assert_array_equal(zero[:, 0], expected_zero)
    dense = oracles.rtn(weight.numpy(), expected_scale[:, None], expected_zero[:, None], bits)
    # `dequantize` multiplies in float32: one rounding of the largest weight
    np.testing.assert_allclose(quantized(grid, weight).dequantize(), dense, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_zeros_stays_zero(symmetric):
    layer = quantized(UniformGrid(bits=2, symmetric=symmetric), torch.zeros(3, 8))
    assert (layer.dequantize() == 0).all()
    torch.testing.assert_close(layer.scale, torch.full((3, 1), 2 / 3))  # the range is -1 .. 1


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clip_search_finds_the_best_of_its_candidates(bits, symmetric):
    weight = normal(6, 32, seed=bits)
    weight[:, 3] *= 4

    def criterion(clip):
        dense = quantized(UniformGrid(bits=bits, symmetric=symmetric, clip=clip), weight)
        return ((dense.dequantize() - weight).abs() ** 2.4).sum(1).double()

    searched = criterion("mse")
    assert (searched <= criterion("minmax") * (1 + 1e-6)).all()
    assert (searched < criterion("minmax") * 0.9).any()
    brute = [oracles.mse_clip_error(row.double().numpy(), bits, symmetric) for row in weight]
    # float32 against float64 on a sum of 32 terms
    np.testing.assert_allclose(searched.numpy(), brute, rtol=1e-5)


def test_a_ragged_last_group_has_its_own_parameters():
    weight = normal(4, 20)
    scale, zero = UniformGrid(bits=4, granularity=PerGroup(8, ragged=True)).fit(
        weight, torch.float32, "layer"
    )
    assert scale.shape == zero.shape == (4, 3)
    for group, columns in enumerate((slice(0, 8), slice(8, 16), slice(16, 20))):
        alone = UniformGrid(bits=4).fit(weight[:, columns], torch.float32, "layer")
        assert torch.equal(scale[:, group : group + 1], alone[0])
        assert torch.equal(zero[:, group : group + 1], alone[1])
    layer = quantized(UniformGrid(bits=4, granularity=PerGroup(8, ragged=True)), weight, size=8)
    steps = scale.repeat_interleave(torch.tensor([8, 8, 4]), 1)
    # at most half a step, or what the rounding of the zero point clips (half a step as well)
    assert ((layer.dequantize() - weight).abs() <= 1.001 * steps).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_are_nearest_under_the_stored_scale(dtype):
    weight = normal(8, 64)
    layer = quantized(UniformGrid(bits=4), weight, dtype)
    assert layer.scale.dtype == dtype
    points = layer.scale.float()[..., None] * (torch.arange(16) - layer.zero.float()[..., None])
    nearest = (weight[..., None] - points).abs().amin(-1)
    torch.testing.assert_close((layer.dequantize() - weight).abs(), nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scale_that_underflows_becomes_the_least_scale(dtype):
    layer = quantized(UniformGrid(bits=4), torch.full((2, 8), 1e-45), dtype)
    least = {torch.float16: 2**-24, torch.bfloat16: 2**-126, torch.float32: 2**-126}
    assert (layer.scale == least[dtype]).all()
    assert layer.dequantize().abs().max() == 0


def test_numbers_that_cannot_be_used_name_the_layer():
    with pytest.raises(NumericalError, match=r"h\.1\.up: a scale of .* overflows torch.float16"):
        UniformGrid(bits=2).fit(1e6 * normal(2, 8), torch.float16, "h.1.up")
    bad = normal(2, 8)
    bad[1, 2] = float("nan")
    with pytest.raises(NumericalError, match=r"h\.1\.up: its weight holds NaN"):
        UniformGrid(bits=2).fit(bad, torch.float16, "h.1.up")
    with pytest.raises(InputError, match="bits"):
        UniformGrid(bits=7)


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(8)])
def test_scale_rows_multiplies_the_dense_weight(granularity):
    weight, alpha = normal(5, 24), 1 + 0.05 * normal(5, seed=1)
    size = granularity.group_size(24, "layer")
    layer = quantized(UniformGrid(bits=3, granularity=granularity), weight, size=size)
    scaled = layer.scale_rows(alpha)
    assert torch.equal(scaled.codes, layer.codes)
    torch.testing.assert_close(scaled.dequantize(), alpha[:, None] * layer.dequantize())
    half = quantized(UniformGrid(bits=3, granularity=granularity), weight, torch.bfloat16, size)
    assert half.scale_rows(alpha).scale.dtype == torch.bfloat16


def test_stored_bits_count_codes_scales_and_zeros():
    weight = normal(4, 24)
    plain = quantized(UniformGrid(bits=3, granularity=PerGroup(8)), weight, torch.float16, 8)
    assert plain.stored_bits == 3 * 96 + 16 * 12 + 3 * 12
    even = quantized(
        UniformGrid(bits=3, granularity=PerGroup(8), symmetric=True), weight, torch.float16, 8
    )
    assert even.stored_bits == 3 * 96 + 16 * 12
    assert even.bits_per_weight == pytest.approx(5.0)


def test_a_layer_comes_back_from_its_tensors():
    layer = quantized(UniformGrid(bits=3, granularity=PerGroup(8)), normal(4, 24), size=8)
    again = UniformLinear.from_tensors(layer.tensors(), layer.metadata())
    assert torch.equal(again.dequantize(), layer.dequantize())
    assert again.metadata() == layer.metadata()
    assert again.shape == (4, 24)


def test_layer_moved_to_a_device_is_equal():
    layer = quantized(UniformGrid(bits=3, granularity=PerGroup(8)), normal(4, 24), size=8)
    layer = layer.with_record(kept_rank=3)
    same = layer.to(torch.device("cpu"))
    assert torch.equal(same.dequantize(), layer.dequantize())
    assert same.record == {"kept_rank": 3} and same.metadata() == layer.metadata()
    away = layer.to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in away.tensors().values())


@pytest.mark.parametrize("grid", [UniformGrid(bits=8, clip="mse"), ScaleZeroGrid(bits=8)])
def test_small_weights_keep_their_bits_in_float16(grid):
    """Scales of 2e-5 are below float16's normal numbers, where its spacing is 6e-8."""
    weight = 1e-3 * normal(16, 64)
    errors = {}
    for dtype in (torch.float16, torch.float32):
        layer = quantized(grid, weight, dtype)
        assert layer.scale.dtype is dtype and layer.scale.max() < torch.finfo(torch.float16).tiny
        errors[dtype] = (layer.dequantize() - weight).square().mean()
    assert errors[torch.float16] < 1.02 * errors[torch.float32]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("clip", ["minmax", "mse", "scale_zero"])
def test_a_symmetric_group_of_one_sign_has_the_range_of_its_largest_value(sign, clip):
    weight = sign * (0.5 + torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) / 2)
    method = RTN(bits=4, symmetric=True, group_size=8, clip=clip)
    layer = method.quantize(LayerProblem(name="h", weight=weight, statistics=None))
    assert (layer.dequantize() - weight).abs().max() < 0.14  # a step of 1 / 7.5, and its clamp
