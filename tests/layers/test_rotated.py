import dataclasses

import pytest
import torch
from oracles import quip as oracle

from q2n.errors import InputError, NumericalError
from q2n.grids import gaussian_range
from q2n.layers.centred import CentredLinear
from q2n.layers.codebook import CodebookLinear
from q2n.layers.levels import LloydMaxLinear, TrellisLinear
from q2n.layers.outliers import OutlierLinear
from q2n.layers.partly_binary import PartlyBinaryLinear
from q2n.layers.rotated import RotatedLinear
from q2n.layers.uniform import UniformLinear

ROWS, COLUMNS = 6, 10
GENERATOR = torch.Generator()


def codes(bits=2):
    return torch.randint(
        0, 2**bits, (ROWS, COLUMNS), generator=GENERATOR.manual_seed(0), dtype=torch.uint8
    )


def centred_layer(**options):
    scale = torch.tensor([0.75], dtype=torch.bfloat16)
    return CentredLinear(codes=codes(), scale=scale, bits=2, **options)


def uniform_layer():
    scale = torch.rand(ROWS, 1, generator=GENERATOR.manual_seed(1)).bfloat16() + 0.5
    zero = torch.full((ROWS, 1), 3, dtype=torch.uint8)
    return UniformLinear(
        codes=codes(3), scale=scale, zero=zero, bits=3, group_size=COLUMNS, symmetric=False
    )


def codebook_layer():
    codebook = torch.randn(ROWS, 4, generator=GENERATOR.manual_seed(4)).half()
    return CodebookLinear(codes=codes(), codebook=codebook, bits=2)


def binary_layer():
    """Two levels for most weights, 8 bits for the others; groups of 4 columns."""
    low = codes() < 3
    count = int(low.sum())
    return PartlyBinaryLinear(
        low=low,
        low_codes=codes(1).flatten()[:count],
        high_codes=codes(8).flatten()[count:],
        mean=torch.randn(ROWS, 3, generator=GENERATOR.manual_seed(5)).half(),
        magnitude=torch.rand(ROWS, 3, generator=GENERATOR.manual_seed(6)).half(),
        scale=torch.full((ROWS, 1), 0.01).half(),
        zero=torch.full((ROWS, 1), 120, dtype=torch.uint8),
        low_bits=1,
        high_bits=8,
        group_size=4,
    )


def outlier_layer():
    values = torch.randn(ROWS, 2, generator=GENERATOR.manual_seed(7))
    return OutlierLinear.of(uniform_layer(), torch.tensor([8, 3]), values)


def rotated(inner, projection="kronecker", rescale=True, **options):
    s = torch.rand(COLUMNS, generator=GENERATOR.manual_seed(2)).bfloat16() + 0.5
    return RotatedLinear(
        inner=inner, projection=projection, seed=11, rescale=s if rescale else None, **options
    )


ALPHA = torch.linspace(0.8, 1.2, ROWS)


def test_the_centred_levels_and_their_one_scale():
    layer = centred_layer()
    levels = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    torch.testing.assert_close(layer.dequantize(), levels[layer.codes.long()])
    assert layer.stored_bits == 2 * ROWS * COLUMNS + 16
    scaled = layer.scale_rows(ALPHA)
    assert scaled.scale.dtype == torch.bfloat16 and scaled.scale.shape == (ROWS,)
    assert scaled.stored_bits == 2 * ROWS * COLUMNS + 16 * ROWS
    # bfloat16 scales
    torch.testing.assert_close(
        scaled.dequantize(), layer.dequantize() * ALPHA[:, None], rtol=2**-8, atol=0
    )


def test_the_centred_scale_is_stored_as_used():
    weight = torch.randn(4, 8, generator=GENERATOR.manual_seed(3))
    scale = gaussian_range.fit(weight, 2.4, torch.float16, "h.0.up")
    assert scale.dtype == torch.float16
    assert float(scale) == pytest.approx(2.4 * float(weight.square().mean().sqrt()), rel=1e-3)
    assert gaussian_range.fit(torch.zeros(2, 2), 2.4, torch.float16, "h.0.up") > 0
    for bad, match in ((1e6 * weight, "float16"), (weight / 0, "not finite")):
        with pytest.raises(NumericalError, match=rf"h\.0\.up.*{match}"):
            gaussian_range.fit(bad, 2.4, torch.float16, "h.0.up")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_spread_is_best_for_gaussian_weights(bits):
    best = gaussian_range.BEST_CLIP_SIGMA[bits]
    least = oracle.gaussian_error(bits, best)
    assert all(oracle.gaussian_error(bits, best + off) > least for off in (-0.005, 0.005))


LAYERS = [
    centred_layer(),
    centred_layer().scale_rows(ALPHA),
    rotated(centred_layer()),
    rotated(uniform_layer(), "blocks", rescale=False),
    rotated(uniform_layer(), "blocks_unpermuted").scale_rows(ALPHA),
    rotated(LloydMaxLinear(codes=codes(3), scale=ALPHA, bits=3)),
    rotated(TrellisLinear(codes=codes(3), scale=ALPHA, bits=3)),
    rotated(codebook_layer()),
    rotated(binary_layer(), "blocks").scale_rows(ALPHA),
    rotated(outlier_layer(), rescale=False).scale_rows(ALPHA),
    rotated(rotated(codebook_layer(), "blocks"), rescale=False),
]
ANY = pytest.mark.parametrize(
    "within",
    [uniform_layer(), centred_layer(), codebook_layer(), binary_layer(), outlier_layer()],
    ids=lambda within: within.kind,
)


@pytest.mark.parametrize("layer", LAYERS, ids=range(len(LAYERS)))
def test_what_is_stored_rebuilds_the_layer(layer):
    again = type(layer).from_tensors(layer.tensors(), layer.metadata())
    assert torch.equal(again.dequantize(), layer.dequantize())
    assert again.stored_bits == layer.stored_bits and again.shape == layer.shape
    assert layer.widths.keys() <= layer.tensors().keys()
    for name, bits in layer.widths.items():
        assert int(layer.tensors()[name].max()) < 2**bits
    assert torch.equal(layer.to(torch.device("cpu")).dequantize(), layer.dequantize())


def test_every_stored_bit_is_counted():
    within = uniform_layer().stored_bits
    assert rotated(uniform_layer()).stored_bits == within + 64 + 16 * COLUMNS
    assert rotated(uniform_layer(), rescale=False).stored_bits == within + 64
    scaled = rotated(uniform_layer()).scale_rows(ALPHA)
    assert scaled.stored_bits == within + 64 + 16 * COLUMNS + 16 * ROWS


def test_a_factor_per_row_after_the_rotation_back():
    layer = rotated(centred_layer())
    scaled = layer.scale_rows(ALPHA)
    # float16 output scales
    expected = layer.dequantize() * ALPHA[:, None]
    torch.testing.assert_close(scaled.dequantize(), expected, rtol=2**-8, atol=1e-6)
    assert torch.equal(scaled.inner.codes, layer.inner.codes)
    assert scaled.output_scale is not None
    twice = scaled.scale_rows(1 / ALPHA)
    torch.testing.assert_close(twice.dequantize(), layer.dequantize(), rtol=2**-7, atol=1e-6)
    with pytest.raises(InputError, match="one factor per row"):
        layer.scale_groups(torch.ones(ROWS, 2))


@ANY
def test_any_representation_lies_in_another_basis(within):
    layer = rotated(within)
    back = layer.basis.weight(layer.dequantize())
    # float32 there and back: a few eps of the largest weight
    largest = float(within.dequantize().abs().max())
    torch.testing.assert_close(back, within.dequantize(), rtol=0, atol=2e-6 * max(1, largest))
    other = dataclasses.replace(layer, seed=12)
    assert not torch.allclose(other.dequantize(), layer.dequantize(), atol=0.01)


@ANY
def test_tensors_within_are_stored_under_a_prefix(within):
    layer = rotated(within).scale_rows(ALPHA)
    inner = {f"inner_{name}" for name in within.tensors()}
    assert layer.tensors().keys() == inner | {"rescale", "output_scale"}
    assert layer.widths == {f"inner_{name}": bits for name, bits in within.widths.items()}
    assert layer.metadata()["inner"] == within.kind
    assert layer.stored_bits == within.stored_bits + 64 + 16 * (ROWS + COLUMNS)


def test_columns_fixed_within_are_scaled_once_mixed():
    mixed = rotated(outlier_layer())
    assert mixed.fixed_columns.numel() == 0
    assert torch.equal(mixed.scaled_part(), mixed.dequantize())


@ANY
def test_a_factor_per_row_scales_the_whole_row(within):
    layer = rotated(within)
    scaled = layer.scale_rows(ALPHA)
    assert torch.equal(scaled.inner.dequantize(), within.dequantize())
    # float16 output scales
    expected = layer.dequantize() * ALPHA[:, None]
    torch.testing.assert_close(scaled.dequantize(), expected, rtol=2**-10, atol=1e-6)
